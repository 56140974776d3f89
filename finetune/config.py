"""A fine-tuning run as one typed object."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from clusters.checkpoint import CheckpointConfig
from clusters.config import Config
from clusters.launch import ClusterConfig
from clusters.tracking import TrackingConfig
from data.loader import LoaderConfig
from data.uncertain import SMOOTH, Policy
from finetune.bootstrap import BootstrapConfig
from finetune.full_config import FullConfig, Pooling, UntrainedConfig
from finetune.label_map import LABEL_SETS, LabelMap
from finetune.thresholds import OperatingConfig

Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SgdConfig(Config):
    """The linear head by stochastic gradient descent with momentum 0.9 and a cosine, instead of to convergence."""

    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="learning rate at the beginning")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="on weights")
    epochs: int = Field(default=30, ge=1, description="passes over the training images")
    batch_size: int = Field(default=256, ge=1, description="images")


class LinearConfig(Config):
    """head=linear: logistic regression on standardised features of the frozen encoder."""

    strengths: list[Strength] = Field(
        default=[1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="C of scikit-learn (small: strong regularisation) to choose from on validation",
    )
    max_iterations: int = Field(default=500, ge=1, description="steps of L-BFGS")
    sgd: SgdConfig | None = Field(
        default=None, description="train this way, with one learning rate and decay; none: each C to convergence"
    )
    pooling: Pooling = Field(
        default="none",
        description="none: images are learned one by one, and a case's probability is the mean of its images'; mean or "
        "max of its images' logits, or attention over its images (Ilse et al., 2018): a case is learned as a whole. "
        "Encoders only: pca, orb and knn go by images",
    )

    @model_validator(mode="after")
    def _sgd_goes_by_images(self) -> "LinearConfig":
        if self.sgd and self.pooling != "none":
            raise ValueError("linear.sgd learns images one by one; set linear.pooling to none, or leave linear.sgd out")
        return self


class FinetuneConfig(Config):
    """A recipe: encoder, head, labels, and what to compare with."""

    data: str = Field(description="dataset folder, path or URL")
    encoder: str = Field(description="pretraining run or encoder folder, path or URL")
    out: str = Field(description="results folder, made if need be; the same command continues it")
    seed: int = Field(default=0, ge=0, description="of subsets, fresh weights, order, augmentation, resampling")
    head: Literal["linear", "full"] = Field(
        default="linear", description="linear: encoder frozen; full: everything is trained"
    )
    label: str | None = Field(
        default=None,
        description="fine-tune on this label alone, yes or no: one of several, or one class against the rest",
    )
    uncertain: Policy | dict[str, Policy] = Field(
        default="ignore",
        description="what a label that the source marks as doubtful counts as in training: ignore, zeros, ones, smooth "
        "(drawn from 0.55 to 0.85), smooth_zeros (0 to 0.3), or per label {Edema: ones}; validation and test leave "
        "doubtful labels out whatever is said here",
    )
    labels: str | list[str] | None = Field(
        default=None,
        description="which labels to fine-tune on: chexpert5 (the five of the competition), nih14, or names [Edema, "
        "Fracture]; none: all",
    )
    label_map: LabelMap = Field(
        default={},
        description="which of the labels here a label of the dataset means: {Effusion: Pleural Effusion}; several of "
        "the dataset's may mean one",
    )
    numbers: list[str] = Field(
        default=[],
        description="measurements of the dataset (imported with numbers=) to predict with a second head, whose weight "
        "against the labels is learned",
    )
    label_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training patients used, of every class, with high and low values of each of "
        "numbers=; small ones lie within larger ones",
    )
    label_seed: int | None = Field(
        default=None,
        ge=0,
        description="of the share of the training patients and of doubtful labels that are smoothed; none: seed. Give "
        "one to runs of several seeds that are to learn from the same labels",
    )
    class_weighting: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class weighs the same in the loss"
    )
    baselines: list[str] = Field(
        default=["untrained"],
        description="what to compare with on the same patients: untrained, pca, orb, knn, imagenet:WEIGHTS, vgg16 or "
        "vgg16:WEIGHTS, inception_v3 likewise (a .safetensors file, or timm:default, which are timm's; untrained "
        "without), or other encoders' locations",
    )
    size_px: int | None = Field(
        default=None, ge=8, description="side of the images given to the encoder; none: as pretrained"
    )
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="bf16: autocast of the encoder")
    on_leak: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="where the encoder saw test patients; warn: go on and say so in the report",
    )
    linear: LinearConfig = Field(default=LinearConfig(), description="the linear head")
    full: FullConfig = Field(default=FullConfig(), description="full fine-tuning")
    operating: OperatingConfig = Field(default=OperatingConfig(), description="reported beside the decision")
    untrained: UntrainedConfig = Field(default=UntrainedConfig(), description="the untrained baseline's network")
    bootstrap: BootstrapConfig = Field(default=BootstrapConfig(), description="intervals")
    features: str | None = Field(
        default=None, description="folder where features of frozen encoders are kept, for several runs; none: in out"
    )
    feature_batch_size: int = Field(default=256, ge=1, description="images at a time without training")
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="workers")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="reading")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="saving")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="metrics")

    @field_validator("uncertain", mode="before")
    @classmethod
    def _known_policies(cls, chosen: Any) -> Any:
        for policy in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if policy not in get_args(Policy):
                raise ValueError(f"'{policy}' is none of {', '.join(get_args(Policy))}")
        return chosen

    @field_validator("labels", mode="before")
    @classmethod
    def _known_labels(cls, chosen: Any) -> Any:
        if isinstance(chosen, str) and chosen not in LABEL_SETS:
            raise ValueError(f"'{chosen}' is none of {', '.join(LABEL_SETS)}; give names as a list [A, B]")
        if isinstance(chosen, list) and (not chosen or len(set(map(str, chosen))) < len(chosen)):
            raise ValueError("give at least one name, and each name once")
        return chosen

    @property
    def pooling(self) -> Pooling:
        """How the head in use makes a case's answer of its images'."""
        return self.full.pooling if self.head == "full" else self.linear.pooling

    @property
    def seed_of_labels(self) -> int:
        """What the share of the training patients and smoothed labels are drawn by."""
        return self.seed if self.label_seed is None else self.label_seed

    @property
    def draws_labels(self) -> bool:
        """Whether anything of the training labels is drawn at all."""
        policies = self.uncertain.values() if isinstance(self.uncertain, dict) else [self.uncertain]
        return self.label_fraction < 1 or any(policy in SMOOTH for policy in policies)

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the result: no location, and of the two heads only the one used."""
        away = {"data", "encoder", "out", "baselines", "cluster", "loader", "checkpoint", "tracking"}
        unused = {"full"} if self.head == "linear" else set()
        if not self.draws_labels or self.seed_of_labels == self.seed:
            unused.add("label_seed")
        # `linear` stays: the PCA baseline is linear whatever the head.
        return self.model_dump(mode="json", exclude=away | unused | {"features", "feature_batch_size", "on_leak"})
