"""MoCo v3 against a plain restatement of its paper's Algorithm 1 (Chen, Xie and He, 2021)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.methods.moco_v3 import MoCoV3, MoCoV3Config, contrast, head
from tests.small_steps import distinct_views, small_step, small_training


def ctr(queries: np.ndarray, keys: np.ndarray, temperature: float, same: np.ndarray) -> float:
    """Mean over queries of 2τ · -log of the own key's share, in loops; keys that are the same sample stay out."""
    q = queries.astype(np.float64) / np.linalg.norm(queries, axis=1, keepdims=True)
    k = keys.astype(np.float64) / np.linalg.norm(keys, axis=1, keepdims=True)
    losses = []
    for i in range(len(q)):
        others = [j for j in range(len(k)) if j == i or not same[i, j]]
        terms = {j: math.exp(float(q[i] @ k[j]) / temperature) for j in others}
        losses.append(-2 * temperature * math.log(terms[i] / sum(terms.values())))
    return sum(losses) / len(losses)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.sampled_from([0.05, 0.2, 1.0]), st.integers(0, 10**6))
def test_the_contrast_is_that_of_the_paper(count: int, temperature: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, keys = generator.normal(size=(2, count, 6))
    groups = generator.integers(0, 2 * count, size=(2, count, 2))
    same = (groups[0][:, None] == groups[1][None]).any(axis=2)
    rows, columns = torch.tensor(groups)
    got = contrast(torch.tensor(queries), torch.tensor(keys), rows, columns, temperature)
    assert float(got) == pytest.approx(ctr(queries, keys, temperature, same), rel=1e-5, abs=1e-6)


def test_the_gradient_is_that_of_the_paper_and_none_reaches_the_keys() -> None:
    queries, keys = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    queries.requires_grad_()
    keys.requires_grad_()
    groups = torch.arange(5)[:, None]
    contrast(queries, keys, groups, groups, 0.2).backward()
    assert keys.grad is None
    nudge, apart = 1e-5, np.zeros((5, 5), dtype=bool)
    for place in ((0, 0), (3, 2)):
        moved = []
        for sign in (1, -1):
            other = queries.detach().clone()
            other[place] += sign * nudge
            moved.append(ctr(other.numpy(), keys.detach().numpy(), 0.2, apart))
        assert queries.grad is not None
        assert float(queries.grad[place]) == pytest.approx((moved[0] - moved[1]) / (2 * nudge), rel=1e-3, abs=1e-6)


def test_the_loss_is_algorithm_1_on_the_network_s_own_outputs() -> None:
    """ctr(q1, k2) + ctr(q2, k1), keys by the momentum encoder, each view a batch of its own."""
    training = small_training("moco_v3", temperature=0.3)
    small_step(training, 0)  # so that the momentum encoder is no longer the encoder
    module, views = training.module, distinct_views(8, 1)
    assert isinstance(module, MoCoV3)
    with torch.no_grad():
        loss = module(views, torch.arange(8).expand(2, 8)[:, :, None]).loss
        q1, q2 = (module.prediction(module.projection(module.encoder(view))).numpy() for view in views)
        k1, k2 = (module.target(view).numpy() for view in views)
    apart = np.zeros((8, 8), dtype=bool)
    assert float(loss) == pytest.approx(ctr(q1, k2, 0.3, apart) + ctr(q2, k1, 0.3, apart), rel=1e-4)


def test_heads_are_the_paper_s() -> None:
    """Three and two layers, batch norm in each, no ReLU and no scale at the end."""
    projection = head(3, 2048, 4096, 256).layers
    names = [type(layer).__name__ for layer in projection]  # type: ignore[union-attr]
    assert names == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    weights = sum(p.numel() for p in projection.parameters())  # type: ignore[union-attr]
    assert weights == 2048 * 4096 + 4096 * 4096 + 4096 * 256 + 2 * 2 * 4096


def test_a_vision_transformer_keeps_its_patch_projection() -> None:
    from pretrain.encoder import EncoderConfig, create_encoder

    torch.manual_seed(0)
    stage = MoCoV3Config(steps=1, projection_hidden=16, projection_dim=8)
    module = MoCoV3(stage, create_encoder(EncoderConfig(name="test_vit")), 64)
    module(distinct_views(4, 0), torch.arange(4).expand(2, 4)[:, :, None]).loss.backward()
    without = {name for name, p in module.encoder.named_parameters() if p.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    hybrid = MoCoV3(stage, create_encoder(EncoderConfig(name="vit_tiny_r_s16_p8_224"), 32), 192)
    assert all(p.requires_grad for p in hybrid.encoder.parameters()), "its ResNet would stay as it was drawn"


def test_the_contrast_is_computed_in_float32_inside_autocast() -> None:
    queries, keys = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(32)[:, None]
    expected = contrast(queries, keys, groups, groups, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast(queries, keys, groups, groups, 0.2), expected)
