"""Connecting a project, against an HTTP server that stores settings like Label Studio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.wrappers import Request, Response

from backend.errors import LabelingConfigError, LabelStudioBlocksError, LabelStudioError
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.setup import answer_of, check_project, connect_project, probe_webhook
from tests.backend.web_server import Web, as_json
from tests.facts import untold

BACKEND = "http://backend:9090"
KEY = "k" * 40
OTHER_CONFIG = '<View><Image name="image" value="$image"/><Choices name="c" toName="image"/></View>'
Json = dict[str, Any]


class OneProject(Web):
    """A Label Studio with project 3. Connecting a backend makes a webhook, as the real one does."""

    def __init__(self, label_config: str) -> None:
        super().__init__()
        self.project: Json = {"id": 3, "label_config": label_config, "show_collab_predictions": True}
        self.backends: list[Json] = []
        self.webhooks: list[Json] = []
        self.answers = {
            "/api/projects/3/": self._answer_project,
            "/api/projects/3/validate/": self._validate,
            "/api/ml": self._answer_backends,
            "/api/ml/1": lambda request: self._update(self.backends[0], request),
            "/api/webhooks/": self._answer_webhooks,
            "/api/webhooks/1/": lambda request: self._update(self.webhooks[0], request),
        }

    @property
    def changes(self) -> int:
        """Requests that may change something: a form that is only validated is not stored."""
        return sum(
            request.method != "GET" and not request.path.endswith("/validate/") for request in self.asked
        )

    def _validate(self, request: Request) -> Response:
        """Refuses names that occur twice, as the real one does."""
        config = request.get_json()["label_config"]
        names = re.findall(r'\bname="([^"]*)"', config)
        if len(set(names)) == len(names):
            return as_json({"config_essential_data_has_changed": True})
        return as_json(
            {"validation_errors": {"label_config": ["Label config contains non-unique names"]}}, 400
        )

    def _answer_project(self, request: Request) -> Response:
        return as_json(self.project) if request.method == "GET" else self._update(self.project, request)

    def _answer_backends(self, request: Request) -> Response:
        if request.method == "GET":
            return as_json(self.backends)
        self.backends.append({**request.get_json(), "id": 1, "state": "CO", "readable_state": "Connected"})
        self._add_webhook({"url": f"{request.get_json()['url']}/webhook", "headers": {}, "is_active": True})
        return as_json(self.backends[-1], 201)

    def _answer_webhooks(self, request: Request) -> Response:
        if request.method == "POST":
            self._add_webhook(request.get_json())
        return as_json(self.webhooks) if request.method == "GET" else as_json(self.webhooks[-1], 201)

    def _add_webhook(self, fields: Json) -> None:
        self.webhooks.append({**fields, "id": 1})

    def _update(self, record: Json, request: Request) -> Response:
        record.update(request.get_json())
        return as_json(record)


@pytest.fixture
def label_studio(request: pytest.FixtureRequest) -> Iterator[OneProject]:
    with OneProject(getattr(request, "param", "<View></View>")) as web:
        yield web


@pytest.fixture
def client(label_studio: OneProject) -> LabelStudioClient:
    return LabelStudioClient(label_studio.url, KEY)


def test_a_new_project_gets_everything(label_studio: OneProject, client: LabelStudioClient) -> None:
    before = check_project(client, 3, BACKEND)
    assert label_studio.changes == 0, "a check changes nothing"
    assert len(before) == 11

    done = connect_project(client, 3, BACKEND, "s3cret", ("user", "pass"))

    assert len(done) == 4, "config, predictions, backend, webhook"
    assert check_project(client, 3, BACKEND) == []
    assert label_studio.project["label_config"] == RECOMMENDED_CONFIG
    assert label_studio.project["show_collab_predictions"] is False
    (backend,), (webhook,) = label_studio.backends, label_studio.webhooks
    assert backend["is_interactive"] is True
    assert (backend["auth_method"], backend["basic_auth_user"]) == ("BASIC_AUTH", "user")
    assert webhook["headers"] == {"X-ML-Secret": "s3cret"}


def test_connecting_again_changes_nothing(label_studio: OneProject, client: LabelStudioClient) -> None:
    connect_project(client, 3, BACKEND, "s3cret")
    project, backends, webhooks = (
        dict(label_studio.project),
        [dict(one) for one in label_studio.backends],
        [dict(one) for one in label_studio.webhooks],
    )

    connect_project(client, 3, BACKEND + "/", "s3cret")

    assert label_studio.project == project
    assert [one | {"url": BACKEND} for one in label_studio.backends] == backends
    assert label_studio.webhooks == webhooks


def test_what_was_undone_by_hand_is_mended(label_studio: OneProject, client: LabelStudioClient) -> None:
    connect_project(client, 3, BACKEND, "s3cret")
    label_studio.backends[0]["is_interactive"] = False
    label_studio.webhooks.clear()
    assert len(check_project(client, 3, BACKEND)) == 2

    connect_project(client, 3, BACKEND, "s3cret")

    assert check_project(client, 3, BACKEND) == []
    assert label_studio.webhooks[0]["headers"] == {"X-ML-Secret": "s3cret"}


def test_instances_are_set_and_other_params_stay(label_studio: OneProject, client: LabelStudioClient) -> None:
    connect_project(client, 3, BACKEND, wishes={"instances": "together"})
    assert label_studio.backends[0]["extra_params"] == {"instances": "together"}

    label_studio.backends[0]["extra_params"] = '{"phrase": "the dog", "instances": "together"}'
    connect_project(client, 3, BACKEND)
    assert "together" in label_studio.backends[0]["extra_params"], "unchanged unless it is asked for"
    connect_project(client, 3, BACKEND, wishes={"instances": "apart"})
    assert label_studio.backends[0]["extra_params"] == {"phrase": "the dog", "instances": "apart"}


@pytest.mark.parametrize("extra_params", ["the dog", "[1]", [1]])
def test_params_that_would_be_lost_are_not_replaced(
    label_studio: OneProject, client: LabelStudioClient, extra_params: object
) -> None:
    connect_project(client, 3, BACKEND)
    label_studio.backends[0]["extra_params"] = extra_params

    with pytest.raises(LabelStudioError, match="not a JSON object"):
        connect_project(client, 3, BACKEND, wishes={"instances": "apart"})

    assert label_studio.backends[0]["extra_params"] == extra_params


def test_predictions_of_a_version_stay_shown(label_studio: OneProject, client: LabelStudioClient) -> None:
    """As `sspsam prelabel` leaves a project; one that is set to the live model asks it at every opening."""
    connect_project(client, 3, BACKEND, "s3cret")
    label_studio.project |= {"show_collab_predictions": True, "model_version": "ssp-sam-demo-0001"}

    assert check_project(client, 3, BACKEND) == []
    connect_project(client, 3, BACKEND, "s3cret")
    assert label_studio.project["show_collab_predictions"] is True

    label_studio.project["model_version"] = label_studio.backends[0]["title"]
    assert len(check_project(client, 3, BACKEND)) == 1, "every opened task would ask the model"
    connect_project(client, 3, BACKEND, "s3cret")
    assert label_studio.project["show_collab_predictions"] is False


NOTES_CONFIG = (
    '<View>\n  <Image name="image" value="$image"/>\n'
    '  <BrushLabels name="mask" toName="image" smart="false"><Label value="object"/></BrushLabels>\n'
    '  <TextArea name="notes" toName="image"/>\n</View>'
)


@pytest.mark.parametrize("label_studio", [NOTES_CONFIG], indirect=True)
def test_a_text_area_becomes_the_prompt_only_when_the_lead_says_so(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    (prompt, *_) = check_project(client, 3, BACKEND)
    assert "sspsam connect --prompt notes" in prompt
    with pytest.raises(LabelingConfigError, match='name="prompt"'):
        connect_project(client, 3, BACKEND)
    assert label_studio.project["label_config"] == NOTES_CONFIG

    shown: list[str] = []
    connect_project(client, 3, BACKEND, "", None, shown.append, lambda: True, text_areas={"prompt": "notes"})

    config = LabelingConfig.parse(label_studio.project["label_config"])
    assert config.prompt is not None
    assert config.prompt.name == "notes"
    assert '+  <TextArea sspsam="prompt" name="notes" toName="image"/>' in shown[0].splitlines()
    assert connect_project(client, 3, BACKEND)[0] == "the labeling config is complete"


@pytest.mark.parametrize("label_studio", [NOTES_CONFIG], indirect=True)
def test_without_the_leads_word_notes_stay_notes(label_studio: OneProject, client: LabelStudioClient) -> None:
    connect_project(client, 3, BACKEND, may_change_config=lambda: True)

    config = LabelingConfig.parse(label_studio.project["label_config"])
    assert config.prompt is not None
    assert config.prompt.name == "prompt"
    assert '<TextArea name="notes" toName="image"/>' in label_studio.project["label_config"]


@pytest.mark.parametrize(
    "label_studio",
    [RECOMMENDED_CONFIG.replace('"absent"', '"remarks"').replace('className="hints"', 'className="x"')],
    indirect=True,
)
def test_a_form_from_before_absences_were_confirmed_is_upgraded(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    shown: list[str] = []

    done = connect_project(client, 3, BACKEND, "", None, shown.append, lambda: True)

    assert LabelingConfig.parse(label_studio.project["label_config"]).absent is not None
    assert [line for line in shown[0].splitlines() if line.startswith("+") and 'name="absent"' in line]
    assert [line for line in done if line.startswith("added") and 'name="absent"' in line]


@pytest.mark.parametrize("label_studio", [OTHER_CONFIG], indirect=True)
def test_a_config_of_ones_own_is_not_replaced_unasked(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    with pytest.raises(LabelingConfigError, match="<BrushLabels"):
        connect_project(client, 3, BACKEND)

    assert label_studio.project["label_config"] == OTHER_CONFIG
    assert label_studio.changes == 0


@pytest.mark.parametrize("label_studio", [OTHER_CONFIG], indirect=True)
def test_a_config_of_ones_own_is_added_to_when_allowed(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    shown: list[str] = []

    connect_project(client, 3, BACKEND, show_diff=shown.append, may_change_config=lambda: bool(shown))

    after = label_studio.project["label_config"]
    assert '<Choices name="c" toName="image"/>' in after
    assert check_project(client, 3, BACKEND) == []
    assert [line[:14] for line in shown[0].splitlines() if "BrushLabels" in line] == ["+  <BrushLabel"]
    assert "-<Choices" not in shown[0]


PAGES = (
    '<View><Repeater on="$images"><Image name="p{{idx}}" value="$images[{{idx}}]"/>'
    '<BrushLabels name="b{{idx}}" toName="p{{idx}}"><Label value="a"/></BrushLabels></Repeater></View>'
)
LIST = (
    '<View><Image name="image" valueList="$images"/>'
    '<BrushLabels name="mask" toName="image"><Label value="a"/></BrushLabels></View>'
)


@pytest.mark.parametrize("label_studio", [PAGES, LIST], indirect=True)
def test_a_form_with_pages_is_refused_with_one_line_and_stays(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    before = label_studio.project["label_config"]

    (line,) = check_project(client, 3, BACKEND)
    with pytest.raises(LabelingConfigError, match="pages are not supported"):
        connect_project(client, 3, BACKEND, may_change_config=lambda: True)

    assert "pages are not supported" in line
    assert "Add" not in line
    assert label_studio.project["label_config"] == before
    assert label_studio.changes == 0


TWICE = (
    '<View><Image name="image" value="$image"/><Choices name="a" toName="image"/><Choices name="a" '
    'toName="image"/><BrushLabels name="mask" toName="image"><Label value="a"/></BrushLabels></View>'
)


@pytest.mark.parametrize("label_studio", [TWICE], indirect=True)
def test_a_form_that_label_studio_does_not_accept_is_not_saved(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    with pytest.raises(LabelingConfigError, match="non-unique names"):
        connect_project(client, 3, BACKEND, may_change_config=lambda: True)

    assert label_studio.project["label_config"] == TWICE
    assert label_studio.changes == 0


TAKEN = (
    '<View><Image name="image" value="$image"/><Choices name="prompt" toName="image"/>'
    '<Choices name="status" toName="image"><Choice value="done"/></Choices></View>'
)


@pytest.mark.parametrize("label_studio", [TAKEN], indirect=True)
def test_a_form_whose_tags_have_our_names_is_connected(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    done = connect_project(client, 3, BACKEND, may_change_config=lambda: True)

    assert len([line for line in done if "rename it" in line and "status" in line]) == 1
    (left,) = check_project(client, 3, BACKEND)
    assert "status" in left
    assert "Add" not in left
    again = connect_project(client, 3, BACKEND, may_change_config=lambda: True)
    assert "rename it" in again[0]


@pytest.mark.parametrize(
    ("inside", "parts"),
    [
        (
            '<BrushLabels name="b" toName="image"><Label value="cat"/></BrushLabels>',
            ["brush", "“b”", "“cat”"],
        ),
        (
            '<PolygonLabels name="p" toName="image"><Label value="a"/><Label value="b"/></PolygonLabels>',
            ["polygon", "“p”", "names", "“a”"],
        ),
        ('<Bitmask name="m" toName="image"/><Polygon name="p" toName="image"/>', ["bitmask of “m”", "“p”"]),
        ('<RectangleLabels name="r" toName="image"><Label value="a"/></RectangleLabels>', ["box", "“r”"]),
        (
            '<BrushLabels name="b" toName="image"><Label value="road"/></BrushLabels>'
            '<RectangleLabels name="r" toName="image"><Label value="car"/></RectangleLabels>',
            ["brush", "“b”", "boxes of “r” ask", 'smart="false"'],
        ),
    ],
)
def test_it_is_said_what_a_phrase_is_answered_with(inside: str, parts: list[str]) -> None:
    config = LabelingConfig.parse(f'<View><Image name="image" value="$image"/>{inside}</View>')

    assert untold(answer_of(config), *parts) == []
    assert answer_of(LabelingConfig.parse(OTHER_CONFIG)) == ""


WITHOUT_OPTIONAL = (
    '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="cat"/></BrushLabels></View>'
)


@pytest.mark.parametrize("label_studio", [WITHOUT_OPTIONAL], indirect=True)
def test_a_config_without_optional_parts_may_stay(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    done = connect_project(client, 3, BACKEND)

    assert label_studio.project["label_config"] == WITHOUT_OPTIONAL
    assert len(done) == 5 + 3, "a line for each part that it lacks"


def refuse(label_studio: OneProject) -> None:
    """As with ML_BLOCK_LOCAL_IP=true, which is the default."""
    reason = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
    label_studio.answers["/api/ml"] = lambda request: (
        as_json(label_studio.backends) if request.method == "GET" else as_json({"detail": reason}, 403)
    )
    label_studio.answers["/api/ml/1/versions"] = as_json({"error": reason}, 500)


def test_a_label_studio_that_blocks_private_addresses_is_told_with_its_settings(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    refuse(label_studio)

    with pytest.raises(
        LabelStudioBlocksError,
        match=r"127\.0\.0\.0/8.*ML_BLOCK_LOCAL_IP=false.*SSRF_PROT",
    ):
        connect_project(client, 3, BACKEND)


def test_a_check_finds_that_addresses_are_blocked(
    label_studio: OneProject, client: LabelStudioClient
) -> None:
    connect_project(client, 3, BACKEND)
    label_studio.backends[0] |= {"state": "DI", "readable_state": "Disconnected"}
    assert untold(check_project(client, 3, BACKEND)[0], BACKEND, "Disconnected") == []
    label_studio.backends[0]["error_message"] = "no such model"
    assert "no such model" in check_project(client, 3, BACKEND)[0]
    refuse(label_studio)

    (problem,) = check_project(client, 3, BACKEND)

    assert "Disconnected" in problem
    assert "ML_BLOCK_LOCAL_IP=false" in problem


@pytest.mark.parametrize("arrives", [True, False])
def test_whether_webhook_events_arrive_is_tried(
    label_studio: OneProject, client: LabelStudioClient, arrives: bool
) -> None:
    """The "backend" keeps when the last event came, and Label Studio sends one when a project changes."""
    with Web() as backend:
        events: list[str] = []
        backend.answers["/webhook"] = lambda request: as_json({"last_event": events[-1] if events else ""})
        label_studio.project["title"] = "Streets"
        plain = label_studio.answers["/api/projects/3/"]
        assert callable(plain)

        def answer(request: Request) -> Response:
            if request.method == "PATCH" and arrives:
                events.append("2026-01-01T00:00:00+00:00")
            return plain(request)

        label_studio.answers["/api/projects/3/"] = answer
        found = probe_webhook(client, 3, backend.url, "s3cret", wait_s=0.5)

    assert label_studio.project["title"] == "Streets"
    assert backend.asked[0].headers["X-Ml-Secret"] == "s3cret"
    advice = untold(found, "SSRF_PROTECTION_ENABLED=false", "WEBHOOK_SECRET", backend.url + "/webhook")
    assert len(advice) == (3 if arrives else 0)


def test_a_backend_that_cannot_be_asked_from_here_is_no_error(client: LabelStudioClient) -> None:
    found = probe_webhook(client, 3, "http://127.0.0.1:9")
    assert untold(found, "http://127.0.0.1:9") == []
    assert "SSRF_PROTECTION_ENABLED" not in found, "Label Studio may well reach it"
