"""What lies behind `python -m finetune efficiency`: a recipe, encoders, and shares of the labels."""

from typing import Any

from pydantic import Field, model_validator

from finetune.config import FinetuneConfig
from finetune.full_config import Share


class EfficiencyConfig(FinetuneConfig):
    """A recipe of fine-tuning, several encoders, and the shares of the labels to try it with."""

    encoder: str = Field(default="", description="left out: encoders= takes its place")
    encoders: list[str] = Field(
        min_length=1,
        description="what to compare: runs or encoder folders, one of them first, `untrained`, and weights of others "
        "as baselines= takes them (imagenet:WEIGHTS, imagenet:timm:default)",
    )
    baseline: str | None = Field(
        default=None, description="the one of encoders= that the others are to match; none: the last"
    )
    fractions: list[Share] = Field(
        default=[0.01, 0.03, 0.1, 0.3, 1.0], min_length=1, description="shares of the training patients; 1 is always in"
    )
    draws: int = Field(default=5, ge=1, description="how often each share is drawn, with seeds from seed= on")

    @model_validator(mode="before")
    @classmethod
    def _first_encoder(cls, values: Any) -> Any:
        named = values.get("encoders") if isinstance(values, dict) else None
        return {**values, "encoder": str(named[0])} if isinstance(named, list) and named else values

    @model_validator(mode="after")
    def _whole(self) -> "EfficiencyConfig":
        if self.label_fraction != 1:
            raise ValueError("label_fraction must be left at 1: the shares stand in fractions=")
        if self.label_seed is not None:
            raise ValueError("label_seed must be left out: each draw has its own")
        if self.baseline is not None and self.baseline not in self.encoders:
            raise ValueError(f"baseline '{self.baseline}' is none of encoders: {', '.join(self.encoders)}")
        return self

    def recipe(self) -> dict[str, Any]:
        """The settings that determine a model: more shares and draws may be asked for later."""
        mine = {"encoders", "baseline", "fractions", "draws"}
        return {name: value for name, value in super().recipe().items() if name not in mine}

    def shares(self) -> list[float]:
        """Ascending, 1 among them."""
        return sorted({*self.fractions, 1.0})

    def plain(self, **changed: Any) -> FinetuneConfig:
        """The recipe of one model, or of all on the same patients."""
        names = FinetuneConfig.model_fields
        values = {name: getattr(self, name) for name in names} | {"baselines": self.encoders[1:]} | changed
        return FinetuneConfig.model_validate(values)
