"""A fine-tuned model and what its user must know of it: pixels to logits, to probabilities, to decisions.

Shapes: I images, N cases, B batch, D features, K labels, H and W pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.bootstrap import Floats, Integers
from finetune.full_config import Pooling
from finetune.heads import POOLING, Head, pool_images
from finetune.study import task_from
from finetune.tasks import pool_cases
from pretrain.encoder import EncoderConfig
from pretrain.views import normalise

POOLINGS: dict[str, Pooling] = {words: kind for kind, words in POOLING.items()}
"""What the card says of a case's answer → how `pool_images` makes it of its images' numbers."""


@dataclass(frozen=True)
class Decision:
    """What validation froze: a threshold per label (none where the largest probability decides), the temperature.

    Logits are divided by the temperature before they become probabilities; 1 changes nothing.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0


@dataclass(frozen=True)
class ModelCard:
    """What a user of the model must know. `processing`: how the dataset's images were made from their files.

    `mean` and `std` are per channel of the encoder, of pixels in 0..1; `fingerprint` is of everything but the latency.
    """

    task: str
    described: dict[str, Any]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    decision: Decision
    pooling: str
    encoder: EncoderConfig
    projection: list[dict[str, Any]]
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    processing: dict[str, Any]
    made_from: dict[str, Any]
    latency: list[dict[str, Any]]
    fingerprint: str


class Model(nn.Module):
    """A fine-tuned model: RGB images in 0..1, (B, 3, H, W), to logits (B, K); normalises by itself.

    Where a case's answer is made by attention, an image's score stands in a last column, beside its logits.
    """

    def __init__(self, card: ModelCard, encoder: nn.Module, head: Head) -> None:
        super().__init__()
        self.card, self.task = card, task_from(card.described)
        self.encoder, self.head = encoder, head

    def features(self, images_B3HW: Tensor) -> Tensor:
        """What the encoder makes of images in 0..1, (B, D)."""
        card = self.card
        return self.encoder(normalise(images_B3HW, card.mean, card.std, card.encoder.channels))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits, before the temperature."""
        return self.head(self.features(images_B3HW))

    @torch.inference_mode()
    def logits(self, pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (B, K) of pixels as the loader gives them, on the device on which the model stands."""
        pixels = torch.from_numpy(pixels_B3HW).to(self.head.weight.device)
        images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        return self(images).float().cpu().numpy()

    def probabilities(self, logits_IK: Floats) -> Floats:
        """Probability of each label, (I, K), at the frozen temperature."""
        return self.task.probabilities(self._at_temperature(logits_IK[:, : len(self.card.labels)]))

    def pool(self, case_I: Integers, logits_IK: Floats) -> tuple[Integers, Floats]:
        """Each case's number, (N,) ascending, and its probabilities, (N, K), at the frozen temperature."""
        return pool_cases(case_I, self.probabilities(self.pooled(case_I, logits_IK)))

    def pooled(self, case_I: Integers, logits_IK: Floats) -> Floats:
        """Logits of each image's case, (I, K), or of the image itself where a case's answer is the mean of those."""
        return pool_images(logits_IK, case_I, POOLINGS[self.card.pooling])

    def _at_temperature(self, logits_IK: Floats) -> Floats:
        """Logits divided by the temperature; numbers, which have none, as they are."""
        num_labels = len(self.yes_or_no)
        scaled = logits_IK[:, :num_labels] / self.card.decision.temperature
        return np.concatenate([scaled, logits_IK[:, num_labels:]], axis=1)

    @property
    def yes_or_no(self) -> tuple[str, ...]:
        """The labels that have a probability: all but those that are numbers."""
        return tuple(label for label in self.card.labels if label not in self.task.number_names)

    @property
    def one_of_several(self) -> bool:
        """Whether the labels exclude each other, so that the largest probability decides."""
        return self.yes_or_no == tuple(self.card.classes) and len(self.yes_or_no) > 1

    def decide(self, probabilities_NK: Floats) -> NDArray[np.int64]:
        """What is decided at the frozen thresholds: class number (N, 1) where one of several, else 0 or 1, (N, K)."""
        labels = self.yes_or_no
        if self.one_of_several:
            return probabilities_NK[:, : len(labels)].argmax(axis=1)[:, None]
        thresholds = [self.card.decision.thresholds.get(label, 0.5) for label in labels]
        return (probabilities_NK[:, : len(labels)] >= np.array(thresholds)).astype(np.int64)
