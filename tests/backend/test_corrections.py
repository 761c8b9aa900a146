"""Counts of corrections: every annotation counts once, even if collected repeatedly."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from redis import Redis

from backend.corrections import CorrectionLog, ProjectTally, Tally, merged
from tests.backend.parts import BASE
from tests.html_page import Page

CATS = Tally("v1", "cat", accepted=2, edited=1, iou=2.5)
DOGS = Tally("v2", "dog", deleted=1, added=3)


@pytest.fixture
def log(redis_server: Redis) -> CorrectionLog:
    return CorrectionLog(redis_server)


def test_an_annotation_counts_once(log: CorrectionLog) -> None:
    for _ in range(3):
        log.note(7, 1, [CATS, DOGS])
    log.note(7, 2, [CATS])
    log.note(8, 3, [DOGS])

    assert log.sums() == [
        ProjectTally(7, Tally("v1", "cat", accepted=4, edited=2, iou=5.0)),
        ProjectTally(7, DOGS),
        ProjectTally(8, DOGS),
    ]


def test_new_counts_take_the_place_of_the_old(log: CorrectionLog) -> None:
    log.note(7, 1, [Tally("v1", "cat", edited=1, iou=0.1)])
    log.note(7, 1, [Tally("v1", "cat", edited=1, iou=0.3), Tally("v1", "dog", added=1)])
    log.note(7, 1, [Tally("v1", "dog", added=1)])

    assert log.sums() == [ProjectTally(7, Tally("v1", "dog", added=1))]


def test_deleted_annotations_are_taken_back(log: CorrectionLog, redis_server: Redis) -> None:
    log.note(7, 1, [CATS])
    log.note(7, 2, [DOGS])
    log.forget(7, [1, 2, 99])

    assert log.sums() == []
    assert not redis_server.exists("sspsam:corrections:7")


def test_shares() -> None:
    assert CATS.mean_iou == pytest.approx(2.5 / 3)
    assert CATS.share("accepted") == pytest.approx(2 / 3)
    assert Tally("v", "l").mean_iou is None
    assert Tally("v", "l").share("accepted") is None
    found_nothing = Tally("v1", "cup", accepted=3, added=1, missed=6, iou=3)
    assert found_nothing.share("accepted") == pytest.approx(0.3), "what was missed is a failure"
    assert found_nothing.share("missed") == pytest.approx(0.6)
    assert merged([CATS, DOGS, CATS]) == [Tally("v1", "cat", accepted=4, edited=2, iou=5.0), DOGS]


def test_metrics_show_them(client: FlaskClient, log: CorrectionLog) -> None:
    log.note(7, 1, [CATS])
    log.note(8, 2, [CATS, DOGS])

    text = client.get("/metrics").text

    assert 'sspsam_corrections{label="cat",outcome="accepted",version="v1"} 4.0' in text
    assert 'sspsam_corrections{label="dog",outcome="deleted",version="v2"} 1.0' in text
    assert 'sspsam_corrections_mean_iou{label="cat",version="v1"} 0.8333' in text
    assert 'sspsam_line_corrections{line="project-7",outcome="accepted"} 2.0' in text
    assert 'sspsam_line_corrections{line="project-8",outcome="deleted"} 1.0' in text
    log.forget(7, [1])
    log.forget(8, [2])
    assert "sspsam_corrections{" not in client.get("/metrics").text


def test_the_start_page_shows_them(client: FlaskClient, log: CorrectionLog) -> None:
    log.note(7, 1, [Tally(BASE, "cat", accepted=3, edited=1, iou=3.5), Tally(BASE, "dog", added=1, missed=1)])

    cells = Page(client.get("/").text).texts("td")

    both, cat, dog = cells[-21:-14], cells[-14:-7], cells[-7:]
    assert both == [BASE, "3 (50 %)", "1 (17 %)", "0 (0 %)", "1 (17 %)", "1 (17 %)", "87.5 %"]
    assert cat == ["cat", "3 (75 %)", "1 (25 %)", "0 (0 %)", "0 (0 %)", "0 (0 %)", "87.5 %"]
    assert dog == ["dog", "0 (0 %)", "0 (0 %)", "0 (0 %)", "1 (50 %)", "1 (50 %)", "–"]
