"""N workers compute what one process with the whole batch computes: the same tasks on 1 and 2 processes."""

from typing import Any

import pytest
import torch

from tests import rank_tasks


def assert_close(one: dict[str, Any], two: dict[str, Any], tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        expected, got = torch.as_tensor(value), torch.as_tensor(two[name])
        difference = ((got - expected).abs() / (1 + expected.abs())).max()
        assert difference < tolerance, f"{name}: {difference}"


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_of_nt_xent_are_those_of_the_global_batch(ranks, seed: int) -> None:
    one = rank_tasks.nt_xent_through_a_network(seed)
    for two in ranks.run("nt_xent_through_a_network", seed):
        assert_close(one, two, 1e-6)


def test_global_batch_norm_equals_batch_norm_over_the_whole_batch(ranks) -> None:
    one = rank_tasks.batch_norm_network(0)
    for two in ranks.run("batch_norm_network", 0):
        assert_close(one, two, 2e-5)


def test_the_time_of_the_gradient_s_all_reduce_is_communication(ranks) -> None:
    for times in ranks.run("time_of_averaging", 3):
        assert times.keys() == {"communication"}
        assert times["communication"] > 0


def test_gathered_rows_carry_every_rank_s_gradient(ranks) -> None:
    answers = ranks.run("gather", 5.0)
    rows = torch.cat([torch.full((2, 3), 5.0), torch.full((2, 3), 6.0)])
    for rank, (everything, gradient) in enumerate(answers):
        assert torch.equal(everything, rows)
        # Both ranks' sums see each row with the same weight, so its gradient is twice that weight.
        assert torch.equal(gradient, 2 * torch.arange(12.0).view(4, 3)[2 * rank : 2 * rank + 2])
