"""MICLe (Azizi et al., 2021, section 3.2): two different images of one case are a positive pair.

Each case gives one pair a time. A case with two images or more gives two distinct ones, chosen at
random, both augmented; a case with one image gives two augmentations of it, as SimCLR does.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clusters.config import InputError
from data.combined import AnyDataset
from pretrain.methods.simclr import SimCLR, SimCLRConfig
from pretrain.stage import Rows, Samples


class MICLeConfig(SimCLRConfig):
    """MICLe: two different images of one case."""

    method: Literal["micle"] = Field(default="micle", description="two different images of one case")  # type: ignore[assignment]


class MICLe(SimCLR):
    """SimCLR whose pairs are two images of one case; network and loss are the same."""

    @staticmethod
    def samples(dataset: AnyDataset, rows: Rows) -> Samples:
        """One sample a case. Raises InputError where no case has two images."""
        samples = Samples.group(rows, dataset.case_of[rows], dataset.shard_of[rows])
        if samples.num_multiple == 0:
            raise InputError(
                f"{dataset.location}: none of its {len(samples)} cases has two images or more, so MICLe has "
                "nothing to learn here; group the images of a case at import (case=…) or drop the micle stage"
            )
        return samples

    @staticmethod
    def pair(rows: Rows, uniforms: NDArray[np.float64]) -> tuple[int, int]:
        """Two distinct rows, each ordered pair equally likely; the same row twice where there is one."""
        if len(rows) == 1:
            return int(rows[0]), int(rows[0])
        first = int(uniforms[0] * len(rows))
        second = int(uniforms[1] * (len(rows) - 1))
        return int(rows[first]), int(rows[second + (second >= first)])
