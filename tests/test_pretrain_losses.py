"""NT-Xent against a plain restatement of equation 1 of Chen et al. (2020), and against lightly's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_sample_that_stands_twice_is_no_negative_of_itself() -> None:
    """With sample 5 in two pairs, its views see the other pair's views neither as positive nor as negative."""
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    samples = torch.tensor([5, 7, 9, 5])
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similar = (z @ z.T / 0.3).exp()
    losses = []
    for i in range(8):
        others = [k for k in range(8) if samples[k % 4] != samples[i % 4] or k == (i + 4) % 8]
        losses.append(-(similar[i, (i + 4) % 8] / similar[i, others].sum()).log())
    assert float(nt_xent(first, second, 0.3, samples)) == pytest.approx(float(sum(losses) / 8), rel=1e-5)


def test_a_collapsed_encoder_shows_ln_2n_minus_1() -> None:
    rows = torch.ones(16, 8)
    assert float(nt_xent(rows, rows, 0.1)) == pytest.approx(math.log(31), rel=1e-5)


def test_loss_is_computed_in_float32_inside_autocast() -> None:
    rows = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = nt_xent(rows[0], rows[1], 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = nt_xent(rows[0], rows[1], 0.1)
    assert torch.equal(expected, got)
