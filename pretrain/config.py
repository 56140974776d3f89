"""A pretraining run as one typed object."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from clusters.checkpoint import CheckpointConfig
from clusters.config import Config
from clusters.launch import ClusterConfig
from clusters.tracking import TrackingConfig
from data.loader import LoaderConfig
from data.order import STREAM_VERSION
from pretrain.compute import ComputeConfig
from pretrain.encoder import EncoderConfig
from pretrain.methods import AnyStage, SimCLRConfig
from pretrain.views import ViewConfig
from pretrain.weights_source import weights_fingerprint

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProbeConfig(Config):
    """kNN and a linear head, learned on labelled training cases, tested on validation cases, while the run goes on."""

    every_steps: int | None = Field(
        default=None,
        ge=1,
        description="steps between probes; none: ten a stage or, where they would take more than a tenth of the time, "
        "fewer; its end is always probed",
    )
    neighbours: int = Field(default=20, ge=1, description="k of kNN, in cases")
    max_images: int = Field(default=5000, ge=1, description="about so many images from each split at most, whole cases")
    dataset: int | None = Field(
        default=None,
        ge=0,
        description="place in data=[…] (from 0) of the one probed on; none: all that are labelled, if their labels are "
        "the same, else the first",
    )


class PretrainConfig(Config):
    """A recipe: the encoder, the views, and the stages to run one after another."""

    data: str | list[str] = Field(description="dataset folder, path or URL, or several: [a,b]")
    weights: list[Weight] | None = Field(
        default=None,
        min_length=1,
        description="of several datasets: how often each has its turn, [1,2]; each runs on across epochs of its own. "
        "none: by size, every sample equally often. An epoch of a stage is as many samples as all of them have",
    )
    held_out: list[str] = Field(
        default=[],
        description="further datasets that will be evaluated on alone: nobody who stands in them, in whichever split, "
        "is learned from elsewhere",
    )
    on_leak: Literal["refuse", "exclude"] = Field(
        default="refuse",
        description="where a patient or image that a dataset holds out (the other splits) is to be learned from in "
        "another; exclude: leave that patient's images out and say how many",
    )
    run: str = Field(description="run folder, made if need be; the same command continues it")
    seed: int = Field(default=0, ge=0, description="of weights, order and views")
    splits: list[str] = Field(default=["train"], description="whose images are learned from; never test")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="bf16: autocast; the loss in float32")
    compute: ComputeConfig = Field(default=ComputeConfig(), description="memory, speed and sizes of a step")
    augment: Literal["auto", "loader", "device"] = Field(
        default="auto", description="where views are finished; auto: on a GPU if there is one"
    )
    encoder: EncoderConfig = Field(default=EncoderConfig(), description="the network")
    views: ViewConfig = Field(default=ViewConfig(), description="augmentation")
    stages: list[AnyStage] = Field(
        default=[SimCLRConfig(epochs=100)], min_length=1, description="one after another; each has"
    )
    on_change: Literal["refuse", "redo"] = Field(
        default="refuse", description="where a stage on disk was made otherwise; redo: from that stage on"
    )
    probe: ProbeConfig = Field(default=ProbeConfig(), description="how good the features are")
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="workers")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="reading")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="saving")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="metrics")

    @model_validator(mode="after")
    def _one_weight_each(self) -> "PretrainConfig":
        if not self.locations:
            raise ValueError("data: give at least one dataset folder")
        if self.weights is not None and len(self.weights) != len(self.locations):
            raise ValueError(f"weights: {len(self.weights)} for {len(self.locations)} datasets; give one for each")
        if self.probe.dataset is not None and self.probe.dataset >= len(self.locations):
            raise ValueError(
                f"probe.dataset: {self.probe.dataset} is not a place in data, 0 to {len(self.locations) - 1}"
            )
        return self

    @property
    def locations(self) -> list[str]:
        """The dataset folders."""
        return [self.data] if isinstance(self.data, str) else self.data

    def stage_name(self, number: int) -> str:
        """The stage's sub-folder in the run: `1-simclr`, `2-micle`."""
        return f"{number + 1}-{self.stages[number].method}"

    def stage_views(self, number: int) -> ViewConfig:
        """The stage's own views, else the recipe's."""
        return self.stages[number].views or self.views

    def words(self) -> str:
        """Methods and encoder, for people: `simclr-micle-resnet50`."""
        return "-".join([*(stage.method for stage in self.stages), self.encoder.name])

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the result, whatever the data, the seed and the weights to start from."""
        of_views = [self.stage_views(number).model_dump(mode="json") for number in range(len(self.stages))]
        stages = [stage.model_dump(mode="json", exclude={"views"}) for stage in self.stages]
        settings = {"precision": self.precision, "batch_norm_group": self.compute.batch_norm_group}
        return {"stages": stages, "views": of_views, "encoder": self.encoder.structure(), **settings}

    def stage_identity(
        self, number: int, dataset_identity: Any, previous: str | None, began_from: str | None = None
    ) -> dict[str, Any]:
        """All that determines a stage's result: what must not change between resumes.

        `began_from`: the fingerprint of weights that are there no more.
        """
        return {
            "stage": self.stages[number].model_dump(mode="json", exclude={"views"}),
            "views": self.stage_views(number).model_dump(mode="json"),
            "encoder": self.encoder.structure(),
            "initial_weights": (began_from or weights_fingerprint(self.encoder)) if number == 0 else None,
            "precision": self.precision,
            "batch_norm_group": self.compute.batch_norm_group,
            "compile": self.compute.compile or None,  # none, as in runs that do not tell
            "seed": self.seed,
            "splits": self.splits,
            "dataset": dataset_identity,
            "stream_version": STREAM_VERSION,
            "previous_encoder": previous,
        }
