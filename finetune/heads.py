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


def pool_images(numbers_NM: Numbers, case_N: NDArray[np.integer], pooling: Pooling) -> Numbers:
    """Logits (N, K) of each image's case, the same for all images of a case; `none`: the image's own."""
    if pooling == "none":
        return numbers_NM
    _, place_N = np.unique(case_N, return_inverse=True)
    num_cases = int(place_N.max(initial=-1)) + 1
    if pooling == "max":
        largest = np.full((num_cases, numbers_NM.shape[1]), -np.inf)
        np.maximum.at(largest, place_N, numbers_NM)
        return largest[place_N].astype(numbers_NM.dtype)
    logits_NK, share_N = numbers_NM, np.ones(len(numbers_NM))
    if pooling == "attention":
        logits_NK, score_N = numbers_NM[:, :-1], numbers_NM[:, -1].astype(np.float64)
        top = np.full(num_cases, -np.inf)
        np.maximum.at(top, place_N, score_N)
        share_N = np.exp(score_N - top[place_N])
    sums, total = np.zeros((num_cases, logits_NK.shape[1])), np.bincount(place_N, share_N, num_cases)
    np.add.at(sums, place_N, share_N[:, None] * logits_NK)
    return (sums / total[:, None])[place_N].astype(numbers_NM.dtype)
