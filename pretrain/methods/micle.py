"""MICLe (Azizi et al., 2021, section 3.2): two different images of one case are a positive pair.

Each case gives one pair a time. A case with two images or more gives two distinct ones, both augmented, a case
with one image two augmentations of it, as SimCLR does. Which two they are is arithmetic on the case and its turn
(how often it stood in the stream before), so that all images of a case are used in turn.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clusters.config import InputError
from data.combined import AnyDataset
from pretrain.methods.simclr import SimCLR, SimCLRConfig
from pretrain.pairs import PairsWithin, two_images
from pretrain.stage import Pair, Rows, Samples

FEW_MULTIPLE = 0.1


class MICLeConfig(SimCLRConfig):
    """MICLe: two different images of one case."""

    method: Literal["micle"] = Field(default="micle", description="two different images of one case")  # type: ignore[assignment]
    pair_within: dict[str, Literal["same", "different"]] = Field(
        default={},
        description="attributes in which a pair agrees or differs, {view: same, laterality: different}; images that "
        "have no such partner in their case give two views of themselves",
    )


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
    def pairing(config: MICLeConfig, dataset: AnyDataset, samples: Samples) -> Pair:  # type: ignore[override]
        """Two images of the case, any or those that fit. Raises InputError for an attribute that is not there."""
        return PairsWithin.of(dataset, config.pair_within) if config.pair_within else two_images

    @staticmethod
    def remarks(config: MICLeConfig, dataset: AnyDataset, samples: Samples) -> list[str]:  # type: ignore[override]
        """How many cases have one image only, and how many no pair that fits, where that is much."""
        lines = []
        share = samples.num_multiple / len(samples)
        if share < FEW_MULTIPLE:
            lines.append(
                f"only {100 * share:.2g} % of cases have two images or more ({samples.num_multiple:,} of "
                f"{len(samples):,}): on all others MICLe does what SimCLR does"
            )
        if config.pair_within:
            lines.append(_fallback(PairsWithin.of(dataset, config.pair_within), samples))
        return lines


def _fallback(pairs: PairsWithin, samples: Samples) -> str:
    """What of the cases with two images or more the constraint leaves alone. Raises InputError if that is all."""
    sizes = np.diff(samples.starts)
    case_of_row: NDArray[np.int64] = np.repeat(np.arange(len(samples)), sizes)
    multiple = sizes[case_of_row] > 1
    alone = pairs.num_partners(samples.rows[multiple], case_of_row[multiple]) == 0
    with_pair = len(np.unique(case_of_row[multiple][~alone]))
    of = f"of {samples.num_multiple:,} cases with two images or more"
    if with_pair == 0:
        raise InputError(
            f"pair_within: none {of} has a pair with {pairs}; choose attributes that tell the images of a case apart"
        )
    return (
        f"pair_within: {samples.num_multiple - with_pair:,} {of} have no pair with {pairs}, and {alone.sum():,} of "
        f"their {len(alone):,} images no partner; these give two views of themselves"
    )
