"""A case's answer from the numbers of its images."""

import math

import numpy as np
import pytest
import torch

from finetune.full_config import Pooling
from finetune.heads import POOLING, Classifier, Head, pool_images, pool_views

CASES: list[Pooling] = ["mean", "max", "attention"]


def numbers(images: int, cases: int, columns: int) -> torch.Tensor:
    return torch.randn(images, cases, columns, generator=torch.Generator().manual_seed(0))


def test_gated_attention_against_a_plain_restatement() -> None:
    """Ilse et al., 2018, eq. 8 and 9: attention over features, then the linear map."""
    torch.manual_seed(0)
    head = Head(6, 4, "attention")
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    assert head.attention is not None
    features_VD = torch.randn(3, 6)
    content, gate, score = (head.attention.content, head.attention.gate, head.attention.score.weight[0].detach())
    head.requires_grad_(False)
    plain = []
    for feature in features_VD:
        hidden = [
            math.tanh(float(v @ feature + a)) / (1 + math.exp(-float(u @ feature + b)))
            for v, a, u, b in zip(content.weight, content.bias, gate.weight, gate.bias)
        ]
        plain.append(math.exp(sum(float(w) * h for w, h in zip(score, hidden))))
    pooled = torch.tensor(plain) @ features_VD / sum(plain)
    expected = head.weight @ pooled + head.bias
    torch.testing.assert_close(pool_views(head(features_VD)[:, None], "attention")[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", CASES)
def test_cached_numbers_of_images_pool_as_in_training(pooling: Pooling) -> None:
    found = numbers(3, 5, 4)
    expected = pool_views(found, pooling).numpy()
    case_N = np.tile([7, 2, 9, 4, 3], 3)  # images of a case need not stand together
    pooled = pool_images(found.flatten(0, 1).numpy(), case_N, pooling)
    for image in range(15):
        assert pooled[image] == pytest.approx(expected[image % 5], rel=1e-5)
    assert pooled.dtype == np.float32


@pytest.mark.parametrize("pooling", CASES)
def test_the_order_of_images_does_not_matter_and_a_case_of_one_image_is_its_own(pooling: Pooling) -> None:
    found = numbers(4, 2, 3)
    torch.testing.assert_close(pool_views(found.flip(0), pooling), pool_views(found, pooling))
    columns = 2 if pooling == "attention" else 3
    torch.testing.assert_close(pool_views(found[:1], pooling), found[0, :, :columns])


def test_without_pooling_each_image_keeps_its_logits() -> None:
    found = numbers(1, 4, 3)
    assert pool_views(found, "none") is not None and torch.equal(pool_views(found, "none"), found[0])
    assert (pool_images(found[0].numpy(), np.array([1, 1, 2, 2]), "none") == found[0].numpy()).all()


def test_huge_attention_scores_stay_finite() -> None:
    found = np.array([[1.0, 800.0], [3.0, 900.0], [5.0, -900.0]], dtype=np.float32)
    assert pool_images(found, np.array([0, 0, 1]), "attention").tolist() == [[3.0], [3.0], [5.0]]


def test_every_pooling_begins_with_even_predictions_and_is_told_in_words() -> None:
    images = torch.randn(6, 3, 8, 8)
    for pooling in POOLING:
        model = Classifier(torch.nn.Flatten(), 192, 5, pooling)
        logits = pool_images(model(images).detach().numpy(), np.array([0, 0, 1, 1, 1, 2]), pooling)
        assert logits.shape == (6, 5) and (logits == 0).all()
