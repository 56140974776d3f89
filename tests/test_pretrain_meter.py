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
    started = time.perf_counter()
    meter, optimizer = meter_and_optimizer()
    for _ in range(2):
        trained(4, meter, optimizer)
        with meter.timing("checkpoint"):
            time.sleep(0.01)
        flushed = time.perf_counter()
        metrics = meter.flush("1-simclr", 4)
        seconds, started = time.perf_counter() - started, flushed
        assert metrics["loss"] == 1.5 and metrics["grad_norm"] == 3.0
        assert 0 < metrics["samples_per_s"] <= 4 * 32 / 0.13
        assert metrics["samples_per_s"] >= 4 * 32 / seconds  # which began before the meter did, however busy it is
        shares = {part: metrics[f"time/{part}"] for part in PARTS}
        assert 0 < sum(shares.values()) <= 1
        assert shares["probe"] == 0 and all(shares[part] > 0 for part in PARTS if part != "probe")
        # Nobody else sleeps in these parts, however busy the machine is: each lasted at least its sleep.
        assert shares["data_wait"] * seconds >= 0.08 * 0.99 and shares["step"] * seconds >= 0.04 * 0.99
        assert "time/communication" not in metrics
    distributed.time_collectives(None)


def test_a_step_that_was_not_taken_counts_for_the_speed_only() -> None:
    meter, _ = meter_and_optimizer()
    for loss, norm, taken in ((1.0, 1.0, 1.0), (float("nan"), float("inf"), 0.0), (3.0, 5.0, 1.0)):
        meter.add(torch.tensor(loss), torch.tensor([norm, taken]))
    metrics = meter.flush("1-simclr", 3)
    assert metrics["loss"] == 2.0 and metrics["grad_norm"] == 3.0
    meter.add(torch.tensor(float("nan")), torch.tensor([float("nan"), 0.0]))
    assert set(meter.flush("1-simclr", 4)) == {"samples_per_s", *(f"time/{part}" for part in PARTS)}
    distributed.time_collectives(None)


def test_ranks_agree_on_the_mean_on_a_broken_loss_and_time_their_collectives(ranks: Any) -> None:
    """Rank 1 alone has a loss that is not finite at the second step of three; rank 0 must stop too."""
    for healthy, refusal in ranks.run("metered", 3):
        assert healthy["loss"] == 0.5
        assert 0 < healthy["time/communication"] < 1
        assert refusal.startswith("1-simclr: the loss is nan at step 6; lower this stage's optim.lr")


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
