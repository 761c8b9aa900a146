"""The order in which Label Studio serves tasks once `sspsam rank` has scored them."""

import requests

from sspsam.version_store.store import VersionCard, VersionStore
from tests.integration.project import PICTURES, WAIT_S, Project, sspsam
from tests.worker.decisive import decisive_state


def next_task(project: Project) -> int:
    """What "Label All Tasks" serves now."""
    url = f"{project.client.url}/api/projects/{project.number}/next"
    answer = requests.get(url, headers={"Authorization": project.client.authorization()}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def test_label_studio_serves_tasks_in_our_order(project: Project) -> None:
    store = VersionStore(project.service.model_dir, "ssp-sam-test")
    before = store.current()
    version = store.promote(store.publish(decisive_state(), VersionCard(), {}).version_id).version_id
    try:
        told = sspsam(project, "rank", "--project", str(project.number), "--phrase", "the crab")
    finally:
        store.rollback()
    assert f"tasks in order: {PICTURES}, predictions posted: {PICTURES}" in told
    predicted = {task: project.client.predictions(task) for task in project.tasks}
    assert {one["model_version"] for found in predicted.values() for one in found} == {version}
    scores = {task: float(found[0]["score"]) for task, found in predicted.items()}
    assert len(set(scores.values())) == PICTURES, "no two are alike"

    served = []
    for _ in project.tasks:
        served.append(next_task(project))
        project.client.create_annotation(served[-1], [])

    assert served == sorted(project.tasks, key=scores.__getitem__)
    assert store.current() == before
