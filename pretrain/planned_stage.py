"""What a plan knows of a stage: its recipe, its samples, what it needs and how fast a core loads."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from data.combined import AnyDataset
from pretrain.cards import Card
from pretrain.config import PretrainConfig
from pretrain.footprint import Footprint, footprint
from pretrain.leakage import pretraining_rows
from pretrain.loading_speed import LOADED_PER_CORE, measured_per_core
from pretrain.methods import METHODS
from pretrain.stage import StageConfig
from pretrain.workers import possible_workers


class PlanConfig(PretrainConfig):
    """A recipe to be planned: its dataset need not be there yet."""

    data: str | list[str] = Field(default="", description="dataset folder; none: see num_samples")
    run: str = Field(default="", description="not used")
    num_samples: list[PositiveInt] = Field(
        default=[], description="without data: samples of each stage, [images,cases]; one number is for all of them"
    )

    @field_validator("num_samples", mode="before")
    @classmethod
    def _listed(cls, counts: Any) -> Any:
        return [counts] if isinstance(counts, int) else counts

    @model_validator(mode="after")
    def _one_count_each(self) -> "PlanConfig":
        if len(self.num_samples) not in (0, 1, len(self.stages)):
            raise ValueError(f"num_samples: {len(self.num_samples)} for {len(self.stages)} stages; give one for each")
        return self


@dataclass(frozen=True)
class PlannedStage:
    """A stage, its samples as far as they are known, and samples/s a core where that was measured here."""

    config: PlanConfig
    number: int
    num_samples: int | None
    measured: float | None

    @property
    def recipe(self) -> StageConfig:
        """The stage's own config."""
        return self.config.stages[self.number]

    @property
    def size_px(self) -> int:
        """Side of a view."""
        return self.config.stage_views(self.number).size_px

    @property
    def workers(self) -> int:
        """How many train together."""
        return possible_workers(self.config)[-1]

    @property
    def share(self) -> int:
        """Samples of the global batch on one worker."""
        return self.recipe.batch_size // self.workers

    @property
    def steps(self) -> int | None:
        """None where epochs and samples do not tell."""
        if self.recipe.steps is None and self.num_samples is None:
            return None
        return self.recipe.num_steps(self.num_samples or 0)

    @cached_property
    def needs(self) -> Footprint:
        """Memory and arithmetic, counted."""
        return footprint(self.config, self.number)

    @property
    def loaded(self) -> float:
        """Samples a second and core, measured or by the benchmark."""
        return self.measured or LOADED_PER_CORE["loader" if self.config.augment == "loader" else "device"]

    def speed(self, card: Card) -> tuple[float, float] | None:
        """Samples a second of all workers, low and high."""
        one = card.expected(self.needs, self.share)
        return None if one is None else (self.workers * one[0], self.workers * one[1])

    def hours(self, card: Card) -> tuple[float, float] | None:
        """Fewest and most; none where steps or speed are not known or the batch does not fit."""
        speed = self.speed(card)
        if speed is None or self.steps is None or self.share > self.needs.largest(card.memory, self.workers):
            return None
        seconds = (self.steps * self.recipe.batch_size / rate for rate in reversed(speed))
        fewest, most = (value / 3600 for value in seconds)
        return fewest, most


def planned_stage(config: PlanConfig, number: int, dataset: AnyDataset | None) -> PlannedStage:
    """A stage with what the dataset, else the person, says of it."""
    if dataset is None:
        told = (config.num_samples * len(config.stages))[number] if config.num_samples else None
        return PlannedStage(config, number, told, None)
    samples = METHODS[config.stages[number].method].samples(dataset, pretraining_rows(dataset, config))
    return PlannedStage(config, number, len(samples), measured_per_core(config, number, dataset, samples))
