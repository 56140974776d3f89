"""NT-Xent against a plain restatement of equation 1 of Chen et al. (2020), and against lightly's."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain import losses
from pretrain.losses import nt_xent
from tests import loss_tasks
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    """Four real gloo processes that load little besides torch."""
    four = Ranks(4, "tests.loss_tasks")
    yield four
    four.close()


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
@given(
    st.integers(1, 7),
    st.sampled_from([0.01, 0.05, 0.5]),
    st.sampled_from([1, 3, 256]),
    st.sampled_from([1, 4, 256]),
    st.integers(0, 10**6),
)
def test_value_and_gradient_with_groups_left_out(
    pairs: int, temperature: float, tile: int, width: int, seed: int
) -> None:
    """Whatever the height and width of the tiles, and whether a group is a sample, a patient or a picture."""
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
        patch.setattr(losses, "TILE_ELEMENTS", {"cpu": tile * width})
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


def test_loss_and_gradient_are_computed_in_float32_inside_autocast() -> None:
    rows = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = nt_xent(rows[0], rows[1], 0.1)
    (expected_gradient,) = torch.autograd.grad(expected, rows)
    with torch.autocast("cpu", torch.bfloat16):
        got = nt_xent(rows[0], rows[1], 0.1)
        (gradient,) = torch.autograd.grad(got, rows)
    assert torch.equal(expected, got)
    assert torch.equal(expected_gradient, gradient)


def test_value_and_gradient_of_a_larger_batch_are_those_in_float64() -> None:
    """To 1e-5 of the largest entry of the gradient."""
    rows = torch.randn(2, 700, 48, generator=torch.Generator().manual_seed(0), requires_grad=True)
    exact = rows.detach().double().requires_grad_()
    similar = torch.nn.functional.normalize(exact.flatten(0, 1), dim=1)
    logits = (similar @ similar.T / 0.1).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(1400).roll(700))
    got = nt_xent(rows[0], rows[1], 0.1)
    got.backward()
    expected.backward()
    assert rows.grad is not None
    assert exact.grad is not None
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (rows.grad - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


class Watched(TorchDispatchMode):
    """Counts the operations that run, and looks at how matrix products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.devices: set[str] = set()
        self.precisions: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name in ("mm", "addmm_"):
            self.precisions.add(str(torch.backends.cuda.matmul.fp32_precision))
        out = func(*args, **(kwargs or {}))
        self.devices |= {t.device.type for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor)}
        return out


class Context:
    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors


def test_the_host_never_waits_for_the_gpu_and_nothing_is_rounded() -> None:
    """With tensors of a GPU that have no values, whoever asked for one would fail; and no tensor is on the CPU.

    Every matrix product, three in all, is in full float32 although the run allows TF32.
    """
    torch.set_float32_matmul_precision("high")
    context: Any = Context()
    try:
        with FakeTensorMode():
            rows_MD = torch.empty(1024, 128, device="cuda")
            groups_MG = torch.empty(1024, 3, dtype=torch.int64, device="cuda")
            one = torch.empty((), device="cuda")
            with Watched() as watched:
                losses._NTXent.forward(context, rows_MD, 0.1, groups_MG)
                gradient_MD = losses._NTXent.backward(context, one)[0]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert gradient_MD.shape == (1024, 128)
    assert watched.devices == {"cuda"}
    assert watched.precisions == {"ieee"}
    tiles = 2  # the first views' rows and the second ones'
    assert watched.counts["mm"] + watched.counts["addmm_"] == 3 * tiles
    assert not watched.counts.keys() & {"_local_scalar_dense", "nonzero", "unique", "index", "_to_copy"}


@pytest.mark.parametrize("masked", [False, True])
def test_four_ranks_gather_projections_groups_and_sums_once_and_nothing_in_backward(
    four_ranks: Any, masked: bool
) -> None:
    """And they compute what one process computes."""
    one = loss_tasks.nt_xent_counted(masked)
    for rank, answer in enumerate(four_ranks.run("nt_xent_counted", masked)):
        assert answer["forward"] == {"all_gather": 3 if masked else 2}
        assert answer["backward"] == {}
        assert answer["loss"] == pytest.approx(one["loss"], rel=1e-6)
        mine = one["gradient"].chunk(4, dim=1)[rank]
        # Each rank's loss is the mean over its own rows: the mean over ranks comes after.
        assert (answer["gradient"] / 4 - mine).abs().max() < 1e-6 * mine.abs().max()
