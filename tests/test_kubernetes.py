"""Kubernetes manifests match the published schemas and name only existing things; none is applied."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from backend.cli.commands import app as backend_commands
from backend.metrics import Metrics
from backend.settings import Settings
from backend.shared_redis import QUEUES
from backend.web.serve import STOP_S
from sspsam.checkpoints.ready_models import NAMES as MODELS
from sspsam.cli.models import VARIABLE
from tests.command_lines import check_command

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "deploy/kubernetes"
VERSIONS = ("1.30", "1.34")
"""Of Kubernetes: the schemas of one release and of a later one."""
KUSTOMIZATIONS = [MANIFESTS / name for name in ("base", "gpu")]

Json = dict[str, Any]


def documents(*folders: Path) -> Iterator[Json]:
    for folder in folders or KUSTOMIZATIONS:
        for path in sorted(folder.glob("*.yaml")):
            if path.name != "kustomization.yaml":
                yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str, *folders: Path) -> list[Json]:
    return [document for document in documents(*folders) if document["kind"] == kind]


WORKLOADS = [*of_kind("Deployment"), *of_kind("StatefulSet")]
OURS = of_kind("Deployment")
NAMES = [document["metadata"]["name"] for document in OURS]


def pod(document: Json) -> Json:
    spec: Json = document["spec"]["template"]["spec"]
    return spec


def container(document: Json) -> Json:
    (found,) = pod(document)["containers"]
    return dict(found)


def labels(document: Json) -> Json:
    return dict(document["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_by_the_published_schema(version: str) -> None:
    kinds = set()
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)
        kinds.add(document["kind"])
    assert {
        "Deployment",
        "StatefulSet",
        "Service",
        "Ingress",
        "NetworkPolicy",
        "HorizontalPodAutoscaler",
    } <= kinds


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_every_manifest_of_a_folder_is_applied(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in kustomization["resources"] if name.endswith(".yaml")} == files
    assert all((folder / name).exists() for name in kustomization["resources"])


@pytest.mark.parametrize("document", OURS, ids=NAMES)
def test_every_part_runs_a_command_that_exists(document: Json) -> None:
    found = container(document)
    assert found["image"] == "ssp-sam-assist"
    check_command(found["args"])
    for probe in ("startupProbe", "livenessProbe"):
        if "exec" in found.get(probe, {}):
            module = found[probe]["exec"]["command"][-1]
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_every_queue_has_a_worker() -> None:
    queues = [
        queue
        for document in of_kind("Deployment", MANIFESTS / "base")
        if container(document)["args"][0] == "worker"
        for queue in container(document)["args"][2].split(",")
    ]
    assert sorted(queues) == sorted(QUEUES)


def test_every_variable_is_a_setting() -> None:
    (settings,) = of_kind("ConfigMap")
    names = set(settings["data"])
    for document in WORKLOADS:
        names |= {variable["name"] for variable in container(document).get("env", [])}
    assert names <= {name.upper() for name in Settings.model_fields} | {VARIABLE}
    model = settings["data"].pop(VARIABLE)
    assert model in MODELS
    Settings(**{name.lower(): value for name, value in settings["data"].items()})


def test_every_secret_is_one_that_the_commands_make() -> None:
    made = CliRunner().invoke(backend_commands, ["secrets", "--label-studio"]).output
    for document in WORKLOADS:
        for variable in container(document).get("env", []):
            if "valueFrom" in variable:
                assert f"{variable['valueFrom']['secretKeyRef']['key']}=" in made


def test_backends_take_phrases_when_the_model_is_loaded_and_end_after_the_last_answer() -> None:
    for document in OURS:
        found = container(document)
        if found["args"] == ["serve"]:
            assert found["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert found["livenessProbe"]["httpGet"]["path"] == "/health"
            pause = int(found["lifecycle"]["preStop"]["exec"]["command"][-1])
            assert pod(document)["terminationGracePeriodSeconds"] > pause + STOP_S
            assert document["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("document", WORKLOADS, ids=[document["metadata"]["name"] for document in WORKLOADS])
def test_pods_can_do_little(document: Json) -> None:
    """The restricted pod security standard, which the namespace enforces."""
    assert pod(document)["automountServiceAccountToken"] is False
    context = pod(document)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(document)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(document)["resources"]["limits"]["memory"]


def test_volumes_selectors_and_targets_meet() -> None:
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for document in WORKLOADS:
        assert document["spec"]["selector"]["matchLabels"].items() <= labels(document).items()
        volumes = {volume["name"]: volume for volume in pod(document).get("volumes", [])}
        claimed = {
            template["metadata"]["name"] for template in document["spec"].get("volumeClaimTemplates", [])
        }
        assert {mount["name"] for mount in container(document)["volumeMounts"]} == volumes.keys() | claimed
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    for service in of_kind("Service"):
        matching = [
            document
            for document in WORKLOADS
            if service["spec"]["selector"].items() <= labels(document).items()
        ]
        assert matching
    services = {service["metadata"]["name"] for service in of_kind("Service")}
    (ingress,) = of_kind("Ingress")
    assert ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] in services
    for autoscaler in of_kind("HorizontalPodAutoscaler"):
        assert autoscaler["spec"]["scaleTargetRef"]["name"] in NAMES


def test_backends_are_scaled_by_a_metric_that_they_have() -> None:
    text = Metrics().render("v", "ready", 0, 0, {"phrases": 3})
    served = set(re.findall(r"^(\w+)\{", text.decode() if isinstance(text, bytes) else text, re.MULTILINE))
    for autoscaler in of_kind("HorizontalPodAutoscaler"):
        (metric,) = autoscaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] in served


def test_only_our_own_parts_reach_redis() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    ((rule,),) = (policies["redis"]["ingress"],)
    (source,) = rule["from"]
    (allowed,) = source["podSelector"]["matchExpressions"]
    components = {labels(document)["app.kubernetes.io/component"] for document in OURS}
    assert set(allowed["values"]) == components
