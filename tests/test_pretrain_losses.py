"""NT-Xent against a plain restatement of equation 1 of Chen et al. (2020), and against lightly's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import losses
from pretrain.losses import nt_xent


def restated(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """l(i, j) = -log exp(s_ij / τ) / Σ_{k≠i} exp(s_ik / τ), mean over both orders of all pairs, in loops."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    count, losses = len(z), []
    for i in range(count):
        j = (i + count // 2) % count
        similar = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(count) if k != i]
        losses.append(-math.log(math.exp(float(z[i] @ z[j]) / temperature) / sum(similar)))
    return sum(losses) / count


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.05, 0.1, 0.5, 1.0]), st.integers(0, 10**6))
def test_value_is_that_of_the_paper(pairs: int, width: int, temperature: float, seed: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, pairs, width))
    got = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    assert float(got) == pytest.approx(restated(first, second, temperature), rel=1e-4, abs=1e-5)


def test_value_and_gradient_are_those_of_lightly() -> None:
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    ours, theirs = (
        torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in "ab"
    )
    loss = nt_xent(ours[0], ours[1], 0.1)
    reference = NTXentLoss(temperature=0.1)(theirs[0], theirs[1])
    loss.backward()
    reference.backward()
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def restated_with_groups(z: torch.Tensor, temperature: float, groups: torch.Tensor) -> torch.Tensor:
    """The same in float64 and torch, for its gradient; rows that share a group are left out of the sum."""
    z = torch.nn.functional.normalize(z, dim=1)
    count, losses = len(z), []
    for i in range(count):
        j = (i + count // 2) % count
        others = [k for k in range(count) if k != i and (k == j or not bool((groups[k] == groups[i]).any()))]
        similar = z[others] @ z[i] / temperature
        losses.append(similar.logsumexp(0) - z[i] @ z[j] / temperature)
    return torch.stack(losses).mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.sampled_from([0.01, 0.05, 0.5]), st.sampled_from([1, 3, 256]), st.integers(0, 10**6))
def test_value_and_gradient_with_groups_left_out(pairs: int, temperature: float, tile: int, seed: int) -> None:
    """Whatever the height of the tiles, and whether a group is a sample, a patient or a picture."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2 * pairs, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    patients = torch.randint(0, pairs, (pairs,), generator=generator).repeat(2)
    pictures = torch.randint(0, 2 * pairs, (2 * pairs,), generator=generator)
    groups = torch.stack([patients, pictures], dim=1)
    expected = restated_with_groups(views, temperature, groups)
    (expected_gradient,) = torch.autograd.grad(expected, views)
    ours = views.detach().float().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "TILE_ROWS", tile)
        got = nt_xent(ours[:pairs], ours[pairs:], temperature, groups)
        (gradient,) = torch.autograd.grad(3 * got, ours)
    scale = 1 / temperature
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=2e-6 * scale)
    assert torch.allclose(gradient.double(), 3 * expected_gradient, rtol=1e-5, atol=1e-5 * scale)


def test_a_sample_that_stands_twice_is_no_negative_of_itself() -> None:
    """With sample 5 in two pairs, its views see the other pair's views neither as positive nor as negative."""
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    samples = torch.tensor([5, 7, 9, 5])
    expected = restated_with_groups(torch.cat([first, second]), 0.3, samples.repeat(2)[:, None])
    assert float(nt_xent(first, second, 0.3, samples)) == pytest.approx(float(expected), rel=1e-5)
    assert float(nt_xent(first, second, 0.3)) > float(expected)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
def test_a_temperature_that_means_nothing_is_refused(temperature: float) -> None:
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match="positive and finite"):
        nt_xent(rows, rows, temperature)


def test_memory_does_not_grow_with_the_square_of_the_batch() -> None:
    """No tensor that the loss keeps for its gradient is as large as the matrix of similarities."""
    kept = []
    rows = torch.randn(2, 512, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        nt_xent(rows[0], rows[1], 0.1)
    assert max(kept) <= 1024 * 8


def test_a_collapsed_encoder_shows_ln_2n_minus_1() -> None:
    rows = torch.ones(16, 8)
    assert float(nt_xent(rows, rows, 0.1)) == pytest.approx(math.log(31), rel=1e-5)


def test_loss_is_computed_in_float32_inside_autocast() -> None:
    rows = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = nt_xent(rows[0], rows[1], 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = nt_xent(rows[0], rows[1], 0.1)
    assert torch.equal(expected, got)
