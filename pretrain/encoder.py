"""Encoders: image to feature vector, by timm name, and the folder in which one is handed on.

An encoder folder has the layout that timm and the Hugging Face hub load (`model.safetensors`,
`config.json`, `README.md`) and `seen.parquet`, which says whom and what it was pretrained on.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import safetensors.torch
import timm
import torch
from pydantic import Field
from torch import nn

from clusters.config import Config, InputError, nearest
from clusters.storage import Folder

WEIGHTS, CONFIG, CARD, SEEN = "model.safetensors", "config.json", "README.md", "seen.parquet"


class EncoderConfig(Config):
    """Which network turns an image into features."""

    name: str = Field(default="resnet50", description="any timm backbone, e.g. resnet18, resnet50, convnext_tiny")
    stem: Literal["standard", "small"] = Field(
        default="standard",
        description="small: 3x3 first convolution, stride 1, no pooling; for images under 48 px",
    )


@dataclass(frozen=True)
class EncoderCard:
    """What a user of the encoder must know: its input, its identity and where it comes from.

    `mean` and `std` are per colour of pixels in 0..1; `size_px` is the side it was pretrained at.
    """

    config: EncoderConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_px: int
    fingerprint: str
    lineage: list[dict[str, Any]]

    @property
    def architecture(self) -> str:
        """The timm name."""
        return self.config.name


@dataclass(frozen=True)
class Seen:
    """64-bit hashes of what an encoder was pretrained on: patients by the scheme of their ids, and images."""

    patients: Mapping[str, frozenset[int]]
    images: frozenset[int]

    @property
    def ids(self) -> frozenset[str]:
        """Whose patient ids they are."""
        return frozenset(self.patients)


def hash64(text: str) -> int:
    """A 64-bit hash of an id, for seen.parquet."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def create_encoder(config: EncoderConfig) -> nn.Module:
    """A timm network without classifier: normalised images (B, 3, H, W) to features (B, num_features).

    Raises InputError for a name that timm does not have, or a small stem on a network without one to fit.
    """
    if not timm.is_model(config.name):
        raise InputError(f"encoder.name: timm has no '{config.name}'{nearest(config.name, timm.list_models())}")
    model = timm.create_model(config.name, num_classes=0)
    # timm's num_features is the width before its own head's hidden layer, where a network has one.
    model.num_features = getattr(model, "head_hidden_size", model.num_features)
    if config.stem == "small":
        _fit_small_stem(model, config.name)
    return model


def untrained_like(card: EncoderCard, seed: int) -> nn.Module:
    """The same architecture with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_encoder(card.config)


def encoder_folder(location: str) -> Folder:
    """The encoder folder at a location: itself, or `encoder/` in a run or stage folder."""
    folder = Folder(location)
    for candidate in (folder, folder / "encoder"):
        if candidate.exists(CONFIG) and candidate.exists(WEIGHTS):
            return candidate
    raise InputError(f"{location}: no {WEIGHTS} and {CONFIG} here; give a finished run or its encoder folder")


def read_card(location: str) -> EncoderCard:
    """Read an encoder's card. Raises InputError where the folder is not one that Manyview wrote."""
    folder = encoder_folder(location)
    try:
        config = folder.read_json(CONFIG)
        ours, pretrained = config["manyview"], config["pretrained_cfg"]
        return EncoderCard(
            config=EncoderConfig(**ours["encoder"]),
            mean=_three(pretrained["mean"]),
            std=_three(pretrained["std"]),
            size_px=int(pretrained["input_size"][-1]),
            fingerprint=ours["fingerprint"],
            lineage=[_with_datasets(stage) for stage in ours["lineage"]],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.file(CONFIG)}: not written by Manyview, or damaged ({type(error).__name__}: {error}); "
            "copy the encoder folder again"
        ) from None


def load_encoder(location: str) -> tuple[nn.Module, EncoderCard]:
    """An encoder with its weights, verified by hash, and its card.

    Raises InputError where weights are damaged or belong to another architecture.
    """
    folder, card = encoder_folder(location), read_card(location)
    content = folder.read(WEIGHTS)
    if hashlib.sha256(content).hexdigest() != card.fingerprint:
        raise InputError(f"{folder.file(WEIGHTS)}: altered since its export; copy it again from its run")
    model = create_encoder(card.config)
    load_weights(model, safetensors.torch.load(content), folder.file(WEIGHTS), card.architecture)
    return model, card


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], where: str, architecture: str) -> None:
    """Load weights that must fit exactly. Raises InputError naming the first that does not."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = next(n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n))
        raise InputError(
            f"{where}: not the weights of {architecture}: {name} is {found.get(name, 'absent')}, "
            f"expected {expected.get(name, 'absent')}; copy the folder again, its files do not belong together"
        )
    model.load_state_dict(weights)


def read_seen(location: str) -> Seen:
    """Whom and what an encoder was pretrained on."""
    folder = encoder_folder(location)
    try:
        table = pq.read_table(io.BytesIO(folder.read(SEEN)))
        kinds, hashes = table.column("kind").to_pylist(), table.column("hash").to_pylist()
        ids = json.loads(table.schema.metadata[b"ids"])
        # Encoders of before named the schemes without saying whose id is whose: then each may be of any.
        schemes = table.column("ids").to_pylist() if "ids" in table.column_names else [None] * len(kinds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.file(SEEN)}: cannot be read ({type(error).__name__}), so nobody can tell whom this encoder "
            "has seen; copy the encoder folder again"
        ) from None
    patients = [(number, scheme) for kind, number, scheme in zip(kinds, hashes, schemes) if kind == "patient"]
    return Seen(
        patients={name: frozenset(n for n, scheme in patients if scheme in (name, None)) for name in ids},
        images=frozenset(number for kind, number in zip(kinds, hashes) if kind == "image"),
    )


def _fit_small_stem(model: nn.Module, name: str) -> None:
    """SimCLR's CIFAR variant (Chen et al., 2020, appendix B.9) of a timm ResNet."""
    first = getattr(model, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise InputError(f"encoder.stem: '{name}' has no ResNet stem to fit; use encoder.stem=standard")
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(cast(nn.Conv2d, model.conv1).weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _with_datasets(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage of the lineage; encoders of before had one dataset each and named it `dataset`."""
    return stage if "datasets" in stage else {**stage, "datasets": [stage["dataset"]]}


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
