"""Heads: what stands on an encoder's features, for one image or for all images of a case.

Each image is turned into M numbers, from which those of its case follow: M = K logits, and with attention the image's
score beside them. Attention over features and a linear map after it is the same as a linear map and attention over its
logits, since the shares of attention sum to 1. So an image's numbers can be cached, whatever its case looks like.

Shapes: N images, V images of a case, B cases, C channels, H and W pixels, D features, K labels, M numbers an image.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.full_config import Pooling

Numbers = NDArray[np.floating[Any]]
ATTENTION_HIDDEN = 128

POOLING: dict[Pooling, str] = {
    "none": "mean of the probabilities of a case's images",
    "mean": "mean of the logits of a case's images",
    "max": "largest logit of a case's images, label by label",
    "attention": "mean of the logits of a case's images, weighted by the softmax of their attention scores",
}
"""How the answer for a case comes from the numbers of its images, in words."""


class GatedAttention(nn.Module):
    """Features (N, D) to scores (N, 1): w·[tanh(V f) ⊙ sigmoid(U f)] (Ilse et al., 2018, eq. 9)."""

    def __init__(self, num_features: int, hidden: int = ATTENTION_HIDDEN) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(num_features, hidden), nn.Linear(num_features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # it begins as the mean

    def forward(self, features_ND: Tensor) -> Tensor:
        """Scores, whose softmax over a case's images are their shares."""
        return self.score(torch.tanh(self.content(features_ND)) * torch.sigmoid(self.gate(features_ND)))


class Head(nn.Linear):
    """Features (N, D) to the numbers (N, M) of each image."""

    def __init__(self, num_features: int, num_labels: int, pooling: Pooling = "none") -> None:
        super().__init__(num_features, num_labels)
        # Zero weights: the first predictions are even, whatever the scale of the features.
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.attention = GatedAttention(num_features) if pooling == "attention" else None

    def forward(self, features_ND: Tensor) -> Tensor:
        """Logits and, with attention, the score in a last column."""
        logits_NK = super().forward(features_ND)
        return logits_NK if self.attention is None else torch.cat([logits_NK, self.attention(features_ND)], dim=1)


class Classifier(nn.Module):
    """Normalised images (N, C, H, W) to numbers (N, M)."""

    def __init__(self, encoder: nn.Module, num_features: int, num_labels: int, pooling: Pooling = "none") -> None:
        super().__init__()
        self.encoder, self.head = encoder, Head(num_features, num_labels, pooling)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The numbers of each image."""
        return self.head(self.encoder(images_NCHW))


def pool_views(numbers_VBM: Tensor, pooling: Pooling) -> Tensor:
    """Logits (B, K) of cases of equally many images; `none` takes cases of one image."""
    if pooling == "none":
        (logits_BK,) = numbers_VBM
        return logits_BK
    if pooling == "mean":
        return numbers_VBM.mean(0)
    if pooling == "max":
        return numbers_VBM.amax(0)
    share_VB1 = numbers_VBM[..., -1:].float().softmax(0)
    return (share_VB1 * numbers_VBM[..., :-1]).sum(0)


def pool_cases_of(numbers_NM: Tensor, place_N: Tensor, num_cases: int, pooling: Pooling) -> Tensor:
    """Logits (B, K) of cases of any number of images; `place_N` is the case of each image, 0 to B - 1."""

    def largest(values_NM: Tensor) -> Tensor:
        place_NM = place_N[:, None].expand_as(values_NM)
        empty = values_NM.new_full((num_cases, values_NM.shape[1]), -torch.inf)
        return empty.scatter_reduce(0, place_NM, values_NM, "amax")

    if pooling == "max":
        return largest(numbers_NM)
    logits_NK, share_N1 = numbers_NM, torch.ones_like(numbers_NM[:, :1])
    if pooling == "attention":
        logits_NK, score_N1 = numbers_NM[:, :-1], numbers_NM[:, -1:]
        share_N1 = (score_N1 - largest(score_N1.detach())[place_N]).exp()
    sums_BK = logits_NK.new_zeros(num_cases, logits_NK.shape[1]).index_add(0, place_N, share_N1 * logits_NK)
    return sums_BK / share_N1.new_zeros(num_cases, 1).index_add(0, place_N, share_N1)


def pool_images(numbers_NM: Numbers, case_N: NDArray[np.integer], pooling: Pooling) -> Numbers:
    """Logits (N, K) of each image's case, the same for all images of a case; `none`: the image's own."""
    if pooling == "none":
        return numbers_NM
    cases, place_N = np.unique(case_N, return_inverse=True)
    numbers = torch.from_numpy(np.asarray(numbers_NM, dtype=np.float64))
    pooled_BK = pool_cases_of(numbers, torch.from_numpy(place_N), len(cases), pooling)
    return pooled_BK.numpy()[place_N].astype(numbers_NM.dtype)
