"""Clicks on the errors of an answer."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.training.batches.clicks import correcting_clicks
from finetune.training.config import make_config
from finetune.training.loop import LOG_NAME, read_log
from finetune.training.train import train

SIDE = 64


def test_clicks_lie_where_the_answer_errs_and_say_what_is_true() -> None:
    torch.manual_seed(0)
    truth = torch.zeros(2, 1, 8, 8)
    truth[0, 0, :, :4] = 1
    answer = torch.where(truth > 0.5, 1.0, -1.0)
    answer[0, 0, 2, 3] = -1.0  # missed
    answer[1, 0, 5, 6] = 1.0  # too much
    xy, labels = correcting_clicks(answer, truth, 1, SIDE)
    assert xy.tolist() == [[[28.0, 20.0]], [[52.0, 44.0]]]
    assert labels.tolist() == [[1], [0]]


def test_a_right_answer_is_clicked_anywhere() -> None:
    torch.manual_seed(0)
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 1
    xy, labels = correcting_clicks(truth - 0.5, truth, 16, SIDE)
    assert set((xy[0, :, 0] < SIDE / 2).long().sub(labels[0]).tolist()) == {0}
    assert 0 < labels.sum() < 16


def test_clicked_answers_are_what_training_judges(tmp_path: Path) -> None:
    losses = {}
    for fraction in (0.0, 0.01, 0.5):
        folder = tmp_path / str(fraction)
        values = {
            "preset": "ssp-sam-test", "data": "stickers/train?count=4&phrases=2&nouns=first", "steps": 1,
            "batch_size": 8, "target_size": 32, "device": "cpu",
        }  # fmt: skip
        train(make_config({**values, "output_dir": folder, "click_fraction": fraction}))
        (line,) = read_log(folder / LOG_NAME)
        losses[fraction] = line["total"]
    assert losses[0.0] == losses[0.01]  # none of eight
    assert losses[0.0] != losses[0.5]
