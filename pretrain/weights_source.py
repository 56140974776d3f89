"""The file of weights that `encoder.weights` names: ours, timm's, torchvision's or anybody's safetensors.

Nothing that could run code is read.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from clusters.config import InputError, absolute
from clusters.storage import Folder
from pretrain.encoder import SIMCLR_RESNETS, EncoderConfig, native_size_px
from pretrain.encoder_folder import (
    CONFIG,
    PROJECTION,
    WEIGHTS,
    EncoderCard,
    encoder_folder,
    fingerprint_of,
    home_of,
    read_card,
)

NONE, TIMM_DEFAULT = "none", "timm:default"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")


@dataclass(frozen=True)
class Source:
    """A file of weights: its title, which names no place, and what is known of it. `card`: where it is ours."""

    folder: Folder
    file: str
    title: str
    size_px: int
    input: dict[str, Any]
    card: EncoderCard | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return f"encoder.weights: {self.folder.file(self.file)}"

    def fingerprint(self) -> str:
        """SHA-256 of the weights; of an encoder of ours its fingerprint."""
        return self.card.fingerprint if self.card else self.folder.sha256(self.file)


def weights_fingerprint(config: EncoderConfig) -> str | None:
    """What tells these weights from others, wherever they lie."""
    return None if config.weights == NONE else find_weights(config).fingerprint()


def with_absolute_weights(config: EncoderConfig) -> EncoderConfig:
    """The config with the weights' path made absolute."""
    away = config.weights in (NONE, TIMM_DEFAULT)
    return config if away else config.model_copy(update={"weights": absolute(config.weights)})


def find_weights(config: EncoderConfig) -> Source:
    """The file that `encoder.weights` names. Raises InputError where there is none, or one that may hold code."""
    location = config.weights
    if location == TIMM_DEFAULT:
        return _from_timm(config)
    parent, _, name = location.rstrip("/").rpartition("/")
    if name.endswith(PICKLES):
        raise InputError(_pickle(location))
    if name.endswith(".safetensors"):
        folder = Folder(parent or "/")
        if not folder.exists(name):
            raise InputError(
                f"encoder.weights: {location}: no such file; give a .safetensors file or an encoder folder"
            )
        _refuse_ours(location, home_of(folder))
        return Source(folder, name, name, native_size_px(config), {})
    try:
        folder = encoder_folder(location)
    except InputError as error:
        unread = [file for file in Folder(location).names() if file.endswith(PICKLES)]
        raise InputError(_pickle(f"{location}/{unread[0]}") if unread else f"encoder.weights: {error}") from None
    return _ours(config, folder) if _is_ours(folder) else _in_timm_s_layout(config, folder)


def _refuse_ours(location: str, home: str) -> None:
    """A file of ours by itself would pass for one of which nobody knows whom it has seen."""
    mends = {
        "encoder": "is the file of a Manyview encoder; give its folder, which tells whom it has seen",
        "model": "is of a model fine-tuned with Manyview, whose patients it has seen; give the encoder it began with",
    }
    if home:
        raise InputError(f"encoder.weights: {location} {mends[home]}")


def _is_ours(folder: Folder) -> bool:
    try:
        return "manyview" in folder.read_json(CONFIG)
    except ValueError:
        raise InputError(f"encoder.weights: {folder.file(CONFIG)}: not JSON; copy the folder again") from None


def _ours(config: EncoderConfig, folder: Folder) -> Source:
    card = read_card(folder.location)
    for key in ("stem", "downsample"):
        if getattr(card.config, key) != getattr(config, key):
            raise InputError(_other(config, folder, key, getattr(card.config, key)))
    networks = [(c.timm_name, c.model_args) for c in (card.config, config)]
    if networks[0] != networks[1]:
        raise InputError(_other(config, folder, "name", card.config.name))
    methods = " → ".join(str(stage["method"]) for stage in card.lineage)
    title = f"Manyview encoder {card.architecture}, {methods or 'weights given'}"
    return Source(folder, WEIGHTS, title, card.size_px, {"mean": card.mean, "std": card.std}, card)


def _in_timm_s_layout(config: EncoderConfig, folder: Folder) -> Source:
    told = folder.read_json(CONFIG)
    there = told.get("architecture", config.timm_name)
    if there != config.timm_name:
        raise InputError(_other(config, folder, "name", there))
    known = told.get("pretrained_cfg", {})
    size_px = int(known.get("input_size", [native_size_px(config)])[-1])
    return Source(folder, WEIGHTS, f"{there} in timm's layout", size_px, known)


def _other(config: EncoderConfig, folder: Folder, key: str, there: str) -> str:
    wanted = getattr(config, key)
    return f"encoder.weights: {folder} holds a network of {key} {there}, not {wanted}; set encoder.{key}={there}"


def _from_timm(config: EncoderConfig) -> Source:
    """The weights that timm publishes, kept in the hub's cache on this machine."""
    import timm

    known = timm.get_pretrained_cfg(config.name)
    if config.name in SIMCLR_RESNETS or known is None or not known.hf_hub_id:
        raise InputError(
            f"encoder.weights: timm has no weights for '{config.name}'; set encoder.weights=none, or another "
            "encoder.name"
        )
    path = _fetched(known.hf_hub_id)
    title = f"timm {config.timm_name}.{known.tag}"
    return Source(Folder(path.parent), path.name, title, int(known.input_size[-1]), known.to_dict())


def _fetched(repository: str) -> Path:
    """Weights on the hub, from its cache where they are there, so that a run goes on without internet as it began."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    try:
        get_hf_file_metadata(hf_hub_url(repository, WEIGHTS))  # asks once, where a download would six times
        return Path(hf_hub_download(repository, WEIGHTS))
    except Exception as error:  # the hub's errors have many classes
        raise InputError(
            f"encoder.weights: {repository} cannot be fetched from the Hugging Face hub ({type(error).__name__}); "
            f"where this machine has no internet, copy its {WEIGHTS} here and give its path"
        ) from None


def _pickle(location: str) -> str:
    made = f"{location.rpartition('.')[0]}.safetensors"
    code = (
        "from torch import load; from safetensors.torch import save_file; "
        f"w = load({location!r}, weights_only=True); "
        f"save_file({{n: t.contiguous() for n, t in w.items()}}, {made!r})"
    )
    return (
        f"encoder.weights: {location} is a pickle, which may hold code and is never read; where you trust it, make a "
        f"safetensors file of it: python -c {shlex.quote(code)}"
    )


def read_tensors(source: Source) -> dict[str, Tensor]:
    """The tensors of a file, verified by hash where it is ours."""
    content = source.folder.read(source.file)
    if source.card:
        projection = source.folder.read(PROJECTION) if source.card.projection else b""
        if fingerprint_of(content, projection) != source.card.fingerprint:
            raise InputError(f"{source.where}: altered since its export; copy it again from its run")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(f"{source.where}: damaged ({error}); copy it again") from None
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(f"{source.where}: {broken[0]} has values that are not finite; give other weights")
    return tensors


def read_shapes(source: Source) -> dict[str, Tensor]:
    """Empty tensors of the file's names and shapes, from its header alone."""
    try:
        size = int.from_bytes(source.folder.read_range(source.file, 0, 8), "little")
        if not 0 < size < source.folder.size(source.file):
            raise ValueError("no header")
        header = json.loads(source.folder.read_range(source.file, 8, size))
        return {name: torch.empty(told["shape"]) for name, told in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{source.where}: not a safetensors file, or damaged ({error}); copy it again") from None
