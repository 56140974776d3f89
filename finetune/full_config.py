"""What lies under `full:` in a recipe: how encoder and head are trained together."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from clusters.config import Config
from pretrain.optim import OptimConfig

Share = Annotated[float, Field(gt=0, le=1)]
Pooling = Literal["none", "mean", "max", "attention"]


class AugmentationConfig(Config):
    """How a training image is varied."""

    crop_area: tuple[Share, Share] = Field(
        default=(0.5, 1.0), description="share of the image's area that a crop keeps"
    )
    flip_horizontal: float = Field(default=0.5, ge=0, le=1, description="probability")
    flip_vertical: float = Field(default=0.5, ge=0, le=1, description="probability; 0 for radiographs")
    jitter_strength: float = Field(default=0.0, ge=0, le=1.25, description="of colour jitter as in SimCLR; 0: none")
    mixup: float = Field(
        default=0.0, ge=0, description="alpha of the Beta distribution of mixup's shares (0.2 say); 0: none"
    )
    cutmix: float = Field(
        default=0.0, ge=0, description="alpha of cutmix's (1.0 say); 0: none; with mixup, each takes half of the images"
    )

    @field_validator("crop_area")
    @classmethod
    def _low_to_high(cls, area: tuple[float, float]) -> tuple[float, float]:
        if area[0] > area[1]:
            raise ValueError("must go from low to high")
        return area

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0


class FullOptimConfig(OptimConfig):
    """How weights are updated, with defaults for fine-tuning."""

    name: Literal["lars", "adamw", "sgd"] = Field(default="adamw", description="adamw, sgd or lars")
    lr: float = Field(default=3e-4, gt=0, description="base learning rate, before scaling")
    lr_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="none", description="linear: lr x batch / 256; sqrt: lr x sqrt(batch); none: lr as it is"
    )
    weight_decay: float = Field(default=0.05, ge=0, description="on weights")
    decay_biases: bool = Field(
        default=False, description="weight decay on biases and normalisation too, which mostly does worse"
    )
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="after the warm-up; step: a tenth after every quarter of the steps"
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor of the rate from each block of the encoder to the one below it (0.75 say); 1: none",
    )


class LossConfig(Config):
    """What is minimised, for labels of yes and no and for one class of several; the defaults are cross-entropy."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the truth spread over all classes")
    focal_gamma: float = Field(default=0.0, ge=0, description="focal loss (Lin et al., 2017), 2 say; 0: none")
    class_balanced_beta: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="weights by the effective number of cases (Cui et al., 2019), 0.999 say; none: no such weights",
    )
    m3ce_weight: float = Field(
        default=0.0, ge=0, description="of the max-margin minimum-classification-error term (Xin & Wang, 2019); 0: none"
    )
    m3ce_margin: float = Field(default=1.0, ge=0, description="by which the true class's logit should lead")
    m3ce_eta: float = Field(
        default=5.0, gt=0, description="how much the strongest rival counts before the others; large: it alone"
    )
    supcon_weight: float = Field(
        default=0.0, ge=0, description="of the supervised contrastive loss (Khosla et al., 2020) beside it; 0: none"
    )
    supcon_temperature: float = Field(default=0.1, gt=0, description="of that loss")

    @model_validator(mode="after")
    def _one_shape(self) -> "LossConfig":
        if self.m3ce_weight and self.focal_gamma:
            raise ValueError("m3ce_weight and focal_gamma: M3CE is built on plain cross-entropy; set one of them to 0")
        return self


class UntrainedConfig(Config):
    """How the untrained baseline may differ from the encoder, for ablations; the encoder itself is what it is."""

    stem: Literal["standard", "small", "deep"] | None = Field(default=None, description="as encoder.stem; none: alike")
    downsample: Literal["strided", "averaged"] | None = Field(
        default=None, description="as encoder.downsample; none: alike"
    )
    zero_gamma: bool | None = Field(default=None, description="as encoder.zero_gamma; none: alike")


class LoraConfig(Config):
    """Low-rank updates of attention layers (Hu et al., 2021)."""

    rank: int = Field(default=8, ge=1, description="of the update of each layer")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")


class FullConfig(Config):
    """head=full: encoder and a fresh head, trained end to end or in part."""

    epochs: int = Field(default=30, ge=1, description="passes over the training images (cases, with pooling)")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without a better validation figure; none: never"
    )
    batch_size: int = Field(
        default=128, ge=2, description="images (cases, with pooling) in the global batch, over all workers"
    )
    train: str = Field(
        default="all",
        pattern=r"^(all|head|lora|last_[1-9][0-9]*)$",
        description="all; head: the head alone, on augmented images; last_2: the last 2 blocks of the encoder and the "
        "head; lora: low-rank updates of a transformer's attention, and the head",
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="with train=lora")
    pooling: Pooling = Field(
        default="none",
        description="none: images are learned one by one, and a case's probability is the mean of its images'; mean or "
        "max of its images' logits, or attention over its images (Ilse et al., 2018): a case is learned as a whole",
    )
    images_per_case: int = Field(
        default=4, ge=1, description="with pooling: how many images of a case a training step takes, repeated if fewer"
    )
    loss: LossConfig = Field(default=LossConfig(), description="what is minimised")
    optim: FullOptimConfig = Field(default=FullOptimConfig(), description="optimiser and learning rate")
    augmentation: AugmentationConfig = Field(default=AugmentationConfig(), description="of training images")

    @model_validator(mode="after")
    def _contrast_needs_one_class(self) -> "FullConfig":
        if self.loss.supcon_weight and self.augmentation.mixes:
            raise ValueError(
                "loss.supcon_weight: a mixed image has no one class to contrast; set mixup and cutmix to 0"
            )
        return self
