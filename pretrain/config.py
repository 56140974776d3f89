"""A pretraining run as one typed object."""

from typing import Any, Literal

from pydantic import Field

from clusters.checkpoint import CheckpointConfig
from clusters.config import Config
from clusters.launch import ClusterConfig
from clusters.tracking import TrackingConfig
from data.loader import LoaderConfig
from pretrain.encoder import EncoderConfig
from pretrain.methods import AnyStage, SimCLRConfig
from pretrain.views import ViewConfig


class ProbeConfig(Config):
    """kNN on labelled training cases, tested on validation cases, while the run goes on."""

    every_steps: int | None = Field(default=None, ge=1, description="steps between probes; none: ten a stage")
    neighbours: int = Field(default=20, ge=1, description="k")
    max_images: int = Field(default=5000, ge=1, description="at most so many images from each split")


class PretrainConfig(Config):
    """A recipe: the encoder, the views, and the stages to run one after another."""

    data: str = Field(description="dataset folder, path or URL")
    run: str = Field(description="run folder, made if need be; the same command continues it")
    seed: int = Field(default=0, ge=0, description="of weights, order and views")
    splits: list[str] = Field(default=["train"], description="whose images are learned from; never test")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="bf16: autocast; the loss in float32")
    augment: Literal["auto", "loader", "device"] = Field(
        default="auto", description="where views are finished; auto: on a GPU if there is one"
    )
    encoder: EncoderConfig = Field(default=EncoderConfig(), description="the network")
    views: ViewConfig = Field(default=ViewConfig(), description="augmentation")
    stages: list[AnyStage] = Field(default=[SimCLRConfig(epochs=100)], min_length=1, description="in this order")
    on_change: Literal["refuse", "redo"] = Field(
        default="refuse", description="where a stage on disk was made otherwise; redo: from that stage on"
    )
    probe: ProbeConfig = Field(default=ProbeConfig(), description="how good the features are")
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="workers")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="reading")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="saving")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="metrics")

    def stage_name(self, number: int) -> str:
        """The stage's sub-folder in the run: `1-simclr`, `2-micle`."""
        return f"{number + 1}-{self.stages[number].method}"

    def stage_views(self, number: int) -> ViewConfig:
        """The stage's own views, else the recipe's."""
        return self.stages[number].views or self.views

    def stage_identity(self, number: int, dataset_fingerprint: str, previous: str | None) -> dict[str, Any]:
        """All that determines a stage's result: what must not change between resumes."""
        return {
            "stage": self.stages[number].model_dump(mode="json", exclude={"views"}),
            "views": self.stage_views(number).model_dump(mode="json"),
            "encoder": self.encoder.model_dump(mode="json"),
            "precision": self.precision,
            "seed": self.seed,
            "splits": self.splits,
            "dataset": dataset_fingerprint,
            "previous_encoder": previous,
        }
