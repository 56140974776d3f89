"""What every stage of a recipe has, whatever its method, and how images form its samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from clusters.config import Config, InputError
from data.cache import CachePlace
from data.mapped import Arrays, open_arrays, share_arrays
from pretrain.optim import OptimConfig
from pretrain.views import ViewConfig

Rows = NDArray[np.int64]
INLINE_BYTES = 1 << 20

Uniforms = Callable[..., NDArray[np.float64]]
"""`uniforms(count, *key)`: numbers in [0, 1) that depend on the run's seed, the stage and this key alone."""
Pair = Callable[[int, Rows, int, Uniforms], tuple[int, ...]]
"""`pair(sample, rows, turn, uniforms)`: which of a sample's rows become views, when it has its turn for that time.

`turn` counts from 0: how often the sample stood in the stream before. Goes to loader processes, so it can be pickled.
"""


class StageConfig(Config):
    """Length, batch and optimiser of a stage."""

    alternatives = ("epochs", "steps")

    epochs: float | None = Field(
        default=None, gt=0, description="passes over the samples (as many as all datasets have); give this or steps"
    )
    steps: int | None = Field(
        default=None, ge=1, description="optimiser steps; give this or epochs (on the command line the last one counts)"
    )
    batch_size: int = Field(default=512, description="samples in the global batch, divided among the workers")
    optim: OptimConfig = Field(default=OptimConfig(), description="optimiser and learning rate")
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay a step of a moving average of the weights, 0.9995 say, which is then what is probed, "
        "exported and handed to the next stage; none: the weights themselves",
    )
    views: ViewConfig | None = Field(default=None, description="views of this stage; none: the recipe's")
    keep_projection_layers: int = Field(
        default=0,
        ge=0,
        description="so many first layers of the projection head go along with the encoder, and fine-tuning goes on "
        "from there (SimCLR v2); 0: none",
    )

    @field_validator("batch_size")
    @classmethod
    def _more_than_one(cls, batch_size: int) -> int:
        if batch_size < 2:
            raise ValueError("must be 2 or more, since a sample is told apart from the others of its batch")
        return batch_size

    @model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def num_steps(self, num_samples: int) -> int:
        """Optimiser steps of this stage on so many samples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * num_samples / self.batch_size))


@dataclass(frozen=True)
class Samples:
    """Index rows grouped into samples: sample s has rows[starts[s] : starts[s + 1]], shard by shard.

    Where there are many, pickling writes them into `cache`, from where each process maps them.
    """

    rows: Rows
    starts: Rows
    shard_sizes: Rows
    cache: CachePlace = field(default_factory=CachePlace)

    @classmethod
    def group(cls, rows: Rows, group_of_row: NDArray[np.integer], shard_of_row: NDArray[np.integer]) -> "Samples":
        """Group ascending rows whose neighbours share a number."""
        first = np.flatnonzero(np.diff(group_of_row, prepend=-1))
        sizes = np.bincount(shard_of_row[first])
        return cls(rows, np.append(first, len(rows)).astype(np.int64), sizes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __reduce__(self) -> tuple[object, ...]:
        arrays = {"rows": self.rows, "starts": self.starts, "shard_sizes": self.shard_sizes}
        return reduced(Samples, arrays, self.cache)

    def __getitem__(self, number: int) -> Rows:
        return self.rows[self.starts[number] : self.starts[number + 1]]

    @property
    def num_multiple(self) -> int:
        """How many samples have two rows or more."""
        return int((np.diff(self.starts) > 1).sum())


def reduced(kind: Callable[..., Any], arrays: Arrays, cache: CachePlace) -> tuple[object, ...]:
    """For `__reduce__` of `kind(**arrays, cache=cache)`: where the arrays are large they travel as a file's name."""
    if sum(array.nbytes for array in arrays.values()) < INLINE_BYTES:
        return _made, (kind, dict(arrays), cache)
    return _mapped, (kind, str(share_arrays(cache.sub_folder("samples"), arrays)), cache)


def _made(kind: Callable[..., Any], arrays: Arrays, cache: CachePlace) -> Any:
    return kind(**arrays, cache=cache)


def _mapped(kind: Callable[..., Any], path: str, cache: CachePlace) -> Any:
    arrays = open_arrays(Path(path))
    if arrays is None:
        raise InputError(f"{path} is gone or damaged; leave the cache alone during a run, and run the command again")
    return kind(**arrays, cache=cache)
