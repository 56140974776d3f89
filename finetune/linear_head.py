"""A head on features that an encoder gave: what it says of images and of cases.

Shapes: I images, D features, K labels, M numbers an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from finetune.bootstrap import Floats, Integers
from finetune.full_config import Pooling
from finetune.heads import pool_images
from finetune.row_blocks import F32, F64


@dataclass(frozen=True)
class LinearHead:
    """logits = features · weightᵀ + bias, on the features as the encoder gives them.

    `pooling` makes a case's logits of its images' (`finetune.heads`); with attention, `attention` are its weights.
    """

    weight_KD: F32
    bias_K: F32
    pooling: Pooling = "none"
    attention: Mapping[str, F32] = field(default_factory=dict)

    def logits(self, features_ID: Floats, case_I: Integers | None = None) -> Floats:
        """(I, K): of each image or, with pooling, of its case; each image is a case of its own without `case_I`."""
        features_ID = np.asarray(features_ID, dtype=np.float64)
        numbers_IM = features_ID @ self.weight_KD.T.astype(np.float64) + self.bias_K
        if self.attention:
            content, gate = (
                features_ID @ self.attention[f"{name}.weight"].T.astype(np.float64) + self.attention[f"{name}.bias"]
                for name in ("content", "gate")
            )
            score_I1 = (np.tanh(content) * expit(gate)) @ self.attention["score.weight"].T.astype(np.float64)
            numbers_IM = np.concatenate([numbers_IM, score_I1], axis=1)
        return pool_images(numbers_IM, np.arange(len(features_ID)) if case_I is None else case_I, self.pooling)

    def weights(self) -> dict[str, F32]:
        """As `finetune.heads.Head` names them."""
        return {"weight": self.weight_KD, "bias": self.bias_K} | {
            f"attention.{name}": values for name, values in self.attention.items()
        }

    def unscaled(self, mean_D: F64, scale_D: F64) -> "LinearHead":
        """The same head of features that are not standardised, from that of standardised ones."""

        def fold(weight: Floats, bias: Floats) -> tuple[F32, F32]:
            weight = np.asarray(weight, dtype=np.float64) / scale_D
            return np.ascontiguousarray(weight, dtype=np.float32), np.asarray(bias - weight @ mean_D, dtype=np.float32)

        attention = dict(self.attention)
        for name in ("content", "gate") if attention else ():
            folded = fold(attention[f"{name}.weight"], attention[f"{name}.bias"])
            attention |= dict(zip((f"{name}.weight", f"{name}.bias"), folded))
        return LinearHead(*fold(self.weight_KD, self.bias_K), self.pooling, attention)
