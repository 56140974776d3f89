"""Encoders: image to feature vector, by name.

Shapes: B images, C = 1 or 3 channels, H and W pixels.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import nn

from clusters.config import Config, InputError, nearest

SIMCLR_RESNETS = {
    "resnet50_1x": ("resnetv2_50", 1),
    "resnet50_2x": ("resnetv2_50", 2),
    "resnet50_4x": ("resnetv2_50", 4),
    "resnet152_1x": ("resnetv2_152", 1),
    "resnet152_2x": ("resnetv2_152", 2),
}
"""SimCLR's networks (Chen et al., 2020, section 4.1) by timm's network and the factor of every layer's width.

Post-activation ones, as SimCLR's are; timm's wide_resnet50_2 is another network, of wide inner layers only.
"""
TRICKS, PLAIN = ("stem", "downsample", "zero_gamma"), ("standard", "small", "strided", None)
"""What "Bag of Tricks for Image Classification" (He et al., 2019, sections 3.1 and 4.1) changes in a ResNet."""


class EncoderConfig(Config):
    """Which network turns an image into features."""

    name: str = Field(
        default="resnet50",
        description="SimCLR's resnet50_1x, resnet50_2x, resnet50_4x, resnet152_1x, resnet152_2x (every layer so many "
        "times as wide), or any timm backbone: resnet50, convnext_tiny, timm:vit_small_patch16_224",
    )
    channels: Literal[1, 3] = Field(default=3, description="3: RGB input; 1: grey input")
    stem: Literal["standard", "small", "deep"] = Field(
        default="standard",
        description="small: 3x3 first convolution, stride 1, no pooling; for images under 48 px; deep: three 3x3 "
        "convolutions in place of a ResNet's 7x7 (ResNet-C of He et al., 2019)",
    )
    downsample: Literal["strided", "averaged"] = Field(
        default="strided",
        description="a ResNet's shortcut where it halves the image; averaged: a mean over 2x2 before its convolution, "
        "with stem=deep a ResNet-D (timm's ResNets are ResNet-B's: the 3x3 convolution has the stride)",
    )
    zero_gamma: bool | None = Field(
        default=None,
        description="whether fresh residual blocks begin as the identity, by zero scales in their last batch norms; "
        "none: as timm has it, which is true for resnet50 and false for SimCLR's",
    )
    weights: str = Field(
        default="none",
        description="what the first stage starts from: none (at random, from the seed); a run or encoder folder; a "
        ".safetensors file with timm's or torchvision's names; a folder in timm's layout; timm:default, timm's own "
        "weights, those of a tag as in name=resnet50.tv_in1k",
    )

    @field_validator("name")
    @classmethod
    def _without_prefix(cls, name: str) -> str:
        return name.removeprefix("timm:")

    @property
    def timm_name(self) -> str:
        """The network's name in timm, without the tag of weights."""
        return SIMCLR_RESNETS.get(self.name, (self.name, 1))[0].split(".")[0]

    @property
    def model_args(self) -> dict[str, Any]:
        """What timm must be told besides the name."""
        width = SIMCLR_RESNETS.get(self.name, (self.name, 0))[1]
        told: dict[str, Any] = {"preact": False, "width_factor": width} if width else {}
        if self.stem == "deep":
            told |= {"stem_type": "deep"} if width else {"stem_type": "deep", "stem_width": 32}
        if self.downsample == "averaged":
            told["avg_down"] = True
        return told

    def structure(self) -> dict[str, Any]:
        """All that determines the network and its fresh weights; where given weights came from does not.

        What came later is left out where it is as it always was, so that encoders of before stay the same.
        """
        later = {
            name
            for name in ("downsample", "zero_gamma")
            if getattr(self, name) == type(self).model_fields[name].default
        }
        return self.model_dump(mode="json", exclude={"weights", *later})


def create_encoder(config: EncoderConfig, size_px: int | None = None) -> nn.Module:
    """A network without classifier: normalised images (B, C, H, W) to features (B, num_features).

    A network that fixes its image size is made for `size_px`, else for the size that it was published with.
    Raises InputError for a name that timm does not have, a network that cannot be made so, or a small stem on
    a network without one to fit.
    """
    import timm  # here, since it takes seconds: --help and refusals of a config do without

    if not timm.is_model(config.timm_name):
        known = [*SIMCLR_RESNETS, *timm.list_models()]
        raise InputError(f"encoder.name: timm has no '{config.name}'{nearest(config.name, known, count=3)}")
    known = timm.list_pretrained(f"{config.timm_name}.*")
    if "." in config.name and config.name not in known:
        raise InputError(f"encoder.name: timm has no weights '{config.name}'{nearest(config.name, known, count=3)}")
    size = {"img_size": size_px} if size_px and fixes_size(config) else {}
    name = config.timm_name if config.model_args else config.name
    fresh: dict[str, Any] = {} if config.zero_gamma is None else {"zero_init_last": config.zero_gamma}
    asked = [f"channels={config.channels}"] + [f"images of {size_px} px"] * bool(size)
    asked += [f"{key}={getattr(config, key)}" for key in TRICKS if getattr(config, key) not in PLAIN]
    with _told(config, " and ".join(asked)):
        model = timm.create_model(name, num_classes=0, in_chans=config.channels, **size, **config.model_args, **fresh)
    # timm's num_features is the width before its own head's hidden layer, where a network has one.
    model.num_features = getattr(model, "head_hidden_size", model.num_features)
    if config.stem == "small":
        _fit_small_stem(model, config)
    return model


def fixes_size(config: EncoderConfig) -> bool:
    """Whether the network is made for one image size, as most transformers are."""
    import timm

    known = timm.get_pretrained_cfg(config.timm_name)
    return known is not None and bool(known.fixed_input_size)


def native_size_px(config: EncoderConfig) -> int:
    """The image side that timm's network of this name was published with, px."""
    import timm

    known = timm.get_pretrained_cfg(config.name if "." in config.name else config.timm_name)
    return int(known.input_size[-1]) if known is not None else 224


def can_change_size(model: nn.Module) -> bool:
    """Whether `change_size` works for it."""
    return hasattr(model, "set_input_size")


def change_size(model: nn.Module, config: EncoderConfig, size_px: int) -> None:
    """Fit a network that fixes its image size to another one, by resampling its position embedding.

    Raises InputError where timm cannot do that for this network.
    """
    if not can_change_size(model):
        raise InputError(
            f"{config.name} is made for one image size and cannot be fitted to {size_px} px; keep to the size that it "
            "was pretrained at"
        )
    with _told(config, f"images of {size_px} px"):
        cast(Any, model).set_input_size(img_size=(size_px, size_px))


def check_encoder(config: EncoderConfig, size_px: int) -> None:
    """Try one image of this side, px, without computing anything.

    Raises InputError where the network does not exist, cannot take the image, would leave a part of it out, or
    does not make one feature vector of it.
    """
    with torch.device("meta"):
        model = create_encoder(config, size_px).eval()
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
        patch = max(patch) if isinstance(patch, tuple) else patch
        if fixes_size(config) and isinstance(patch, int) and size_px % patch:
            below, above = size_px // patch * patch, -(-size_px // patch) * patch
            raise InputError(
                f"encoder.name: '{config.name}' cuts images into patches of {patch} px and would leave out the border "
                f"of one of {size_px} px; set views.size_px={below or above} or {above if below else 2 * above}"
            )
        with _told(config, f"images of {size_px} px"), torch.no_grad():
            shape = tuple(model(torch.zeros(1, config.channels, size_px, size_px)).shape)
    if shape != (1, model.num_features):
        raise InputError(
            f"encoder.name: '{config.name}' makes {shape} of an image, not one feature vector; choose another network"
        )


@contextmanager
def _told(config: EncoderConfig, what: str) -> Iterator[None]:
    """Networks refuse with errors of many kinds, each in its own words."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error))[:160] or type(error).__name__
        raise InputError(
            f"encoder.name: '{config.name}' does not take {what} ({reason}); change that, or choose another network"
        ) from None


def small_stem(config: EncoderConfig) -> tuple[str, str, str]:
    """Where a ResNet's stem stands: the module, "" for the network itself, its convolution and its pooling."""
    return ("stem", "conv", "pool") if config.timm_name.startswith("resnetv2") else ("", "conv1", "maxpool")


def _fit_small_stem(model: nn.Module, config: EncoderConfig) -> None:
    """SimCLR's CIFAR variant (Chen et al., 2020, appendix B.9) of a timm ResNet."""
    where, conv, pool = small_stem(config)
    stem = model.get_submodule(where)
    first = getattr(stem, conv, None)
    if type(first) is not nn.Conv2d or not hasattr(stem, pool):
        raise InputError(f"encoder.stem: '{config.name}' has no ResNet stem to fit; use encoder.stem=standard")
    fitted = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out", nonlinearity="relu")
    setattr(stem, conv, fitted)
    setattr(stem, pool, nn.Identity())
