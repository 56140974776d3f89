"""Health figures against plain restatements, and alarms that are raised where they should be and nowhere else."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clusters import distributed
from clusters.storage import Folder
from clusters.tracking import Tracker, TrackingConfig
from data.dataset import Dataset
from pretrain.alarms import LOOKS, REPEAT_AFTER, Alarms
from pretrain.health import MAX_ROWS, alignment, measure, possible_directions, rankme, spread, uniformity
from pretrain.methods.method import Output
from pretrain.watch import Watch
from tests.small_steps import tiny_training


def features(kind: str, seed: int = 0, num: int = 48, width: int = 32) -> torch.Tensor:
    """Projections (2, num, width) of two alike views: healthy, all the same, or in a plane."""
    drawn = torch.Generator().manual_seed(seed)
    base = torch.randn(num, width, generator=drawn)
    if kind == "constant":
        base = torch.randn(1, width, generator=torch.Generator().manual_seed(99)).expand(num, width)
    elif kind == "plane":
        base = torch.randn(num, 2, generator=drawn) @ torch.randn(2, width, generator=drawn)
    noise = {"healthy": 0.3, "constant": 1e-3, "plane": 1e-4}[kind]
    return base + noise * torch.randn(2, num, width, generator=drawn)


def output(projected: torch.Tensor, encoded: torch.Tensor | None = None) -> Output:
    return Output(torch.tensor(1.0), projected if encoded is None else encoded, projected)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_figures_are_those_of_the_papers_in_float64() -> None:
    projected = features("healthy")
    first, second = unit(projected.double().numpy())
    assert float(alignment(projected)) == pytest.approx(np.mean(np.sum((first - second) ** 2, axis=1)), rel=1e-5)
    expected = [
        math.log(np.mean([math.exp(-2 * np.sum((a - b) ** 2)) for a, b in combinations(view, 2)]))
        for view in (first, second)
    ]
    assert float(uniformity(projected)) == pytest.approx(np.mean(expected), rel=1e-5)
    rows = projected.flatten(0, 1).double().numpy()
    assert float(spread(projected.flatten(0, 1))) == pytest.approx(unit(rows).std(axis=0).mean() * 32**0.5, rel=1e-5)
    for some in (rows, rows[:20], rows[:, :3], np.maximum(rows, 0) + 1):
        sigma = np.linalg.svd(some, compute_uv=False)
        p = sigma / sigma.sum() + 1e-7
        assert float(rankme(torch.from_numpy(some))) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-4)


def test_figures_tell_collapse_of_both_kinds_from_health() -> None:
    found = {kind: measure(output(features(kind, num=64))) for kind in ("healthy", "constant", "plane")}
    std, rank = ({kind: x[f"health/{name}_projection"] for kind, x in found.items()} for name in ("std", "rankme"))
    assert std["healthy"] == pytest.approx(1, abs=0.05) and std["constant"] < 0.01 and std["plane"] > 0.5
    assert rank["healthy"] > 25 and rank["constant"] < 1.5 and 1.5 < rank["plane"] < 2.1
    assert found["constant"]["health/uniformity"] == pytest.approx(0, abs=1e-4)
    # Centred, the collapsed rows would be noise of full rank.
    rows = features("constant").flatten(0, 1)
    assert float(rankme(rows - rows.mean(0))) > 25


def test_no_more_rows_are_looked_at_than_the_bound() -> None:
    projected = torch.randn(2, MAX_ROWS, 4)
    projected[:, MAX_ROWS // 2 :] = 1e6  # beyond the bound
    assert measure(output(projected)) == measure(output(projected[:, : MAX_ROWS // 2]))
    assert possible_directions(8, 128) == 16
    assert possible_directions(4096, 128) == 128
    assert possible_directions(4096, 2048) == MAX_ROWS


def test_features_that_are_not_finite_give_no_figures() -> None:
    projected = features("healthy")
    projected[1, 3, 2] = float("nan")
    assert measure(output(projected)) == {}


def test_two_ranks_measure_what_one_process_measures(ranks: Any) -> None:
    first, second = ranks.run("health_of", 3)
    assert second == {}
    drawn = torch.Generator().manual_seed(3)
    encoded, projected = torch.randn(2, 12, 20, generator=drawn), torch.randn(2, 12, 6, generator=drawn)
    assert first == pytest.approx(measure(output(projected, encoded)), rel=1e-5)


def watched(stream: list[dict[str, Any]], possible: int = 32, total: int = 10_000) -> list[tuple[int, str]]:
    """(look, kind) of all alarms on such metrics, ten steps apart."""
    alarms = Alarms(total)
    alarms.possible_directions = possible
    return [(look, a.kind) for look, metrics in enumerate(stream, 1) for a in alarms.see(10 * look, metrics)]


def stream(kind: str, losses: Any, **more: float) -> list[dict[str, Any]]:
    return [
        {"loss": float(loss), "loss_collapsed": math.log(95), **measure(output(features(kind, seed))), **more}
        for seed, loss in enumerate(losses)
    ]


def falling(number: int, seed: int = 0) -> np.ndarray:
    """A healthy loss: noisy, from above the collapsed value down."""
    return 2 + 5 * np.exp(-np.arange(number) / 10) + 0.3 * np.random.default_rng(seed).normal(size=number)


def test_a_healthy_run_stays_silent() -> None:
    assert watched(stream("healthy", falling(60), **{"time/data_wait": 0.04})) == []


def test_each_kind_of_failure_is_said_after_few_looks_and_not_again_and_again() -> None:
    assert watched(stream("constant", [math.log(95)] * 20)) == [(LOOKS, "collapse")]
    assert watched(stream("plane", falling(20))) == [(LOOKS, "dimensional collapse")]
    back = np.concatenate([falling(30), np.full(20, 4.7)])
    assert [kind for look, kind in watched(stream("healthy", back)) if look > 30] == ["divergence"]
    exploding = np.concatenate([falling(10), 8 * 2.0 ** np.arange(12)])
    assert [kind for _, kind in watched(stream("healthy", exploding))] == ["divergence"]
    again = watched([stream("constant", [4.5])[0]] * (LOOKS + REPEAT_AFTER))
    assert [look for look, _ in again] == [LOOKS, LOOKS + REPEAT_AFTER]


def test_directions_that_get_lost_are_said() -> None:
    healthy = stream("healthy", falling(30))
    for look in range(20, 30):
        healthy[look]["health/rankme_projection"] = 10.0
    assert watched(healthy) == [(20 + LOOKS, "dimensional collapse")]


def test_an_encoder_in_a_plane_is_said_once_the_stage_is_warm() -> None:
    """A curve in the features may still be spread out by the projection head."""
    flat = stream("healthy", falling(30), **{"health/rankme_encoder": 2.0})
    assert watched(flat, total=10_000) == []
    assert watched(flat, total=500) == [(5 + LOOKS, "dimensional collapse")]


def test_a_device_that_waits_for_data_is_said_with_the_numbers_and_the_mend() -> None:
    waiting = stream("healthy", falling(20), **{"time/data_wait": 0.43, "samples_per_s": 118.0})
    alarms = Alarms(1000, "raise loader.num_processes (2 now)")
    said = [alarm for step, metrics in enumerate(waiting, 1) for alarm in alarms.see(10 * step, metrics)]
    assert [alarm.kind for alarm in said] == ["input-bound"]
    assert said[0].reason == (
        "43 % of the time goes into waiting for data (118 samples/s); raise loader.num_processes (2 now)"
    )
    only_at_first = stream("healthy", falling(20), **{"time/data_wait": 0.02})
    only_at_first[0]["time/data_wait"] = 0.9
    assert watched(only_at_first) == []


def test_a_loss_without_a_known_collapsed_value_is_judged_by_where_it_began() -> None:
    rising = [{"loss": -0.9 + 0.02 * k} for k in range(40)]  # a negative cosine, from -0.9 to -0.1
    assert watched(rising) == []
    assert [kind for _, kind in watched([{"loss": 0.5 * 1.3**k} for k in range(30)])] == ["divergence"]
    assert watched([{"lr": 0.1}, {"loss": None}, {"alarm": "collapse"}]) == []


def test_a_resumed_stage_does_not_say_again_what_was_said(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """It judges its old records as it judged them then: RankMe 5 is little of the 128 that the batch allows."""
    training = tiny_training({"network": "vit", "stage": {"batch_size": 64, "steps": 1000}})
    tracker = Tracker(Folder(tmp_path), TrackingConfig(wandb="disabled"), "run", {})
    few = {"loss": 4.0, "health/std_projection": 1.0, "health/rankme_projection": 5.0}
    fresh = Watch(training.config, 0, synthetic_dataset, training, tracker, 0, 123)
    said = []
    for step in range(1, 5):
        tracker.log(step, few)
        said += fresh._alarms.see(step, few)
    assert [alarm.kind for alarm in said] == ["dimensional collapse"]
    resumed = Watch(training.config, 0, synthetic_dataset, training, tracker, 4, 123)
    assert [resumed._alarms.see(step, few) for step in range(5, 9)] == [[]] * 4
    distributed.time_collectives(None)
