"""The rank that the others wait for is named with its machine and the cause, and nobody is where all are alike."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from pretrain.stragglers import WINDOWS, Stragglers, fixed_work_s, waiting_share

ALIKE = [[0.1, 1.0, 0.2], [0.12, 1.1, 0.08], [0.1, 0.9, 0.3], [0.1, 1.0, 0.2]]


def said(windows: list[list[list[float]]], hosts: Sequence[str | None] | None = None) -> list[str]:
    """What is said of these windows of ranks of (data wait, compute, communication) seconds a step."""
    watcher = Stragglers(hosts or [f"node-{rank}" for rank in range(len(windows[0]))])
    return [alarm.reason for window in windows for alarm in watcher.see(np.array(window))]


def slow_by(rank: int, cause: int, seconds: float) -> list[list[float]]:
    """A window in which one rank is late, so that the others wait for it in the gradient's exchange."""
    window = [list(row) for row in ALIKE]
    for other, row in enumerate(window):
        row[cause if other == rank else 2] += seconds
    return window


def test_ranks_that_are_alike_and_one_bad_window_are_passed_over() -> None:
    assert said([ALIKE] * 10) == []
    assert said([ALIKE, slow_by(3, 0, 0.7), slow_by(3, 0, 0.7), ALIKE] * 4) == []
    assert said([[[0.01, 1.0, 0.2], [0.05, 1.0, 0.16]]] * 5) == []  # five times as long, and nothing of a step
    assert said([slow_by(2, 2, 0.5)] * 5) == []  # who waits in the exchange is not the one that is waited for


@pytest.mark.parametrize(("cause", "words"), [(0, "data wait 0.8 s a step against 0.1 s"), (1, "compute 1.7 s")])
def test_the_slow_rank_is_said_once_with_host_cause_and_mend(cause: int, words: str) -> None:
    (sentence,) = said([ALIKE, *[slow_by(3, cause, 0.7)] * 10])
    assert sentence.startswith(f"rank 3 on node-3 is slow and the others wait for it: {words}")
    assert said([slow_by(3, cause, 0.7)] * (WINDOWS - 1)) == []
    (untold,) = said([slow_by(3, cause, 0.7)] * WINDOWS, [None] * 4)
    assert untold.startswith("rank 3 is slow")


def test_a_slow_device_is_told_by_the_same_work_where_its_steps_look_like_the_others() -> None:
    """As on GPUs, where the others wait for it within their own computing."""
    watcher = Stragglers([f"node-{rank}" for rank in range(4)])
    alike, slow = np.array([0.010, 0.0105, 0.0098, 0.010]), np.array([0.010, 0.0105, 0.0098, 0.015])
    assert [alarm for _ in range(10) for alarm in watcher.see(np.array(ALIKE), alike)] == []
    (alarm,) = [alarm for _ in range(10) for alarm in watcher.see(np.array(ALIKE), slow)]
    assert alarm.reason.startswith(
        "rank 3 on node-3 is slow and the others wait for it: compute, of a piece of work that"
    )
    assert "is the same on all, 15 ms against 10 ms; look for other work, heat" in alarm.reason


def test_the_same_work_takes_a_device_about_as_long_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    first, again = (fixed_work_s(torch.device("cpu")) for _ in range(2))
    assert min(first, again) > 0 and torch.equal(torch.get_rng_state(), before), "it draws nothing"
    monkeypatch.setattr("pretrain.stragglers.FIXED_SIDE", 512)
    assert fixed_work_s(torch.device("cpu")) < first / 4


def test_the_waiting_is_what_the_middle_rank_waits_longer_than_the_last_to_arrive() -> None:
    assert waiting_share(np.array([[0.0, 1.0, 1.0], [0.0, 1.9, 0.1]])) == pytest.approx(0.45 / 2)
    assert waiting_share(np.array([[0.0, 1.0, 0.5]] * 3)) == 0.0


@pytest.mark.parametrize(("slow", "privacy"), [("data_wait", "normal"), ("compute", "strict")])
def test_one_of_two_real_processes_that_is_slowed_is_named(
    slow: str, privacy: str, synthetic_dataset: Dataset, tmp_path: Path, ranks: Any
) -> None:
    stage = {"method": "simclr", "batch_size": 16, "projection_hidden": 16, "projection_dim": 8}
    values = {
        "data": synthetic_dataset.location,
        "run": str(tmp_path / "run"),
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "views": {"size_px": 32},
        "stages": [{**stage, "steps": WINDOWS + 1}],
        "probe": {"every_steps": 100},
        "tracking": {"wandb": "disabled", "every_steps": 1, "privacy": privacy},
    }
    ranks.run("slowed_stage", {**values, "slow": slow})
    lines = (tmp_path / "run/1-simclr/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # By chance a busy machine may slow the other one, too.
    (reason,) = [r["reason"] for r in records if r.get("alarm") == "straggler" and r["reason"].startswith("rank 1")]
    host = f" on {socket.gethostname()}" if privacy == "normal" else ""
    cause = {"data_wait": "data wait", "compute": "compute"}[slow]
    assert reason.startswith(f"rank 1{host} is slow and the others wait for it: {cause} ")
    assert all(record["time/waiting_for_slowest"] >= 0 for record in records if "loss" in record)
    assert privacy == "normal" or not any(socket.gethostname() in line for line in lines)
