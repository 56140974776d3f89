"""BYOL against a plain restatement of its paper's equation 2 (Grill et al., 2020)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.methods.byol import BYOL, squared_distance
from tests.small_steps import distinct_views, small_step, small_training


def equation_2(predicted: np.ndarray, target: np.ndarray) -> float:
    """Mean over samples of the squared distance of the two normalised vectors, in loops."""
    losses = []
    for q, z in zip(predicted.astype(np.float64), target.astype(np.float64)):
        difference = q / np.linalg.norm(q) - z / np.linalg.norm(z)
        losses.append(sum(float(d) ** 2 for d in difference))
    return sum(losses) / len(losses)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 10**6))
def test_the_loss_is_that_of_the_paper(count: int, width: int, seed: int) -> None:
    predicted, targets = np.random.default_rng(seed).normal(size=(2, 2, count, width))
    got = squared_distance(torch.tensor(predicted), torch.tensor(targets))
    expected = equation_2(predicted[0], targets[0]) + equation_2(predicted[1], targets[1])
    assert float(got) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_each_view_predicts_what_the_target_says_of_the_other() -> None:
    """Symmetrised, and each view a batch of its own."""
    training = small_training("byol")
    small_step(training, 0)  # so that the target is no longer the online network
    module, views = training.module, distinct_views(8, 1)
    assert isinstance(module, BYOL)
    with torch.no_grad():
        loss = module(views, torch.arange(8).expand(2, 8)[:, :, None]).loss
        q1, q2 = (module.prediction(module.projection(module.encoder(view))).numpy() for view in views)
        z1, z2 = (module.target(view).numpy() for view in views)
    assert float(loss) == pytest.approx(equation_2(q1, z2) + equation_2(q2, z1), rel=1e-4)


def test_no_gradient_reaches_the_targets() -> None:
    predicted, targets = torch.randn(2, 2, 5, 4)
    predicted.requires_grad_()
    targets.requires_grad_()
    squared_distance(predicted, targets).backward()
    assert targets.grad is None
    assert predicted.grad is not None
    assert predicted.grad.abs().max() > 0


def test_the_loss_is_computed_in_float32_inside_autocast() -> None:
    predicted, targets = torch.randn(2, 2, 32, 16, generator=torch.Generator().manual_seed(0))
    expected = squared_distance(predicted, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(squared_distance(predicted, targets), expected)
