"""Loss, gradient norm and the parts of the time between two flushes."""

import time
from contextlib import suppress
from typing import Any

import torch

from clusters import distributed
from clusters.stopwatch import Stopwatch
from pretrain.meter import PARTS, Meter


def trained(num_steps: int, meter: Meter, optimizer: torch.optim.Optimizer) -> None:
    weight = optimizer.param_groups[0]["params"][0]
    for step in range(num_steps):
        with meter.timing("data_wait"):
            time.sleep(0.02)
        with meter.timing("step"):
            weight.grad = torch.ones_like(weight)
            time.sleep(0.01)
            optimizer.step()
        meter.add(torch.tensor(float(step)), torch.tensor([2.0 * step, 1.0]))


def meter_and_optimizer() -> tuple[Meter, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    return Meter(32, optimizer), optimizer


def test_a_flush_gives_means_speed_and_shares_of_the_time_and_begins_anew() -> None:
    meter, optimizer = meter_and_optimizer()
    for _ in range(2):
        started = time.perf_counter()
        trained(4, meter, optimizer)
        with meter.timing("checkpoint"):
            time.sleep(0.01)
        metrics = meter.flush().metrics
        seconds = time.perf_counter() - started
        assert metrics["loss"] == 1.5 and metrics["grad_norm"] == 3.0
        assert 0 < metrics["samples_per_s"] <= 4 * 32 / 0.13
        assert metrics["samples_per_s"] >= 4 * 32 / seconds * 0.999
        shares = {part: metrics[f"time/{part}"] for part in PARTS}
        assert 0 < sum(shares.values()) <= 1
        assert shares["probe"] == 0 and all(shares[part] > 0 for part in PARTS if part != "probe")
        # Nobody else sleeps in these parts, however busy the machine is: each lasted at least its sleep.
        assert shares["data_wait"] * seconds >= 0.08 * 0.99 and shares["step"] * seconds >= 0.04 * 0.99
        assert "time/communication" not in metrics
    distributed.time_collectives(None)


def test_the_first_step_that_is_not_finite_is_named() -> None:
    meter, _ = meter_and_optimizer()
    assert meter.is_finite
    for loss, norm, finite in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (3.0, 5.0, 0.0), (float("inf"), 1.0, 1.0), (1, 1, 1)):
        meter.add(torch.tensor(float(loss)), torch.tensor([float(norm), float(finite)]))
    assert not meter.is_finite
    window = meter.flush()
    assert (window.broken_ago, window.broken_loss) == (2, 3.0)  # the gradient's flag, with a finite loss
    for loss in (1.0, float("nan"), 1.0):
        meter.add(torch.tensor(loss))
    window = meter.flush()
    assert window.broken_ago == 1 and window.broken_loss != window.broken_loss
    meter.add(torch.tensor(1.0), torch.tensor([float("inf"), 1.0]))
    assert meter.flush().broken_ago == 0
    meter.add(torch.tensor(1.0), torch.tensor([0.0, 1.0]))
    assert meter.flush().broken_ago is None
    distributed.time_collectives(None)


def test_ranks_agree_on_the_mean_the_broken_step_and_the_time_of_their_collectives(ranks: Any) -> None:
    """Rank 1 alone has a loss that is not finite at the second step of three; rank 0 must know."""
    answers = ranks.run("metered", 3)
    for healthy, broken_ago in answers:
        assert healthy["loss"] == 0.5
        assert 0 < healthy["time/communication"] < 1
        assert broken_ago == 1


def test_a_stopwatch_counts_what_happened_since_it_was_read() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with suppress(ZeroDivisionError), watch.timing("a"):
        time.sleep(0.01)
        raise ZeroDivisionError
    with watch.timing("a"), watch.timing("inner"):
        time.sleep(0.01)
    found = watch.read()
    assert found["a"] >= 0.02 and 0.01 <= found["inner"] <= found["a"]
    assert watch.read() == {}
