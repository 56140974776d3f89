"""What the first stage starts from: weights of ours or of others, with a report of what was loaded and what was not.

Tensors are matched by their names; one of another shape is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from clusters.config import InputError
from clusters.tracking import say
from pretrain.encoder import EncoderConfig, can_change_size, change_size, create_encoder, fixes_size
from pretrain.encoder_folder import Seen, read_seen
from pretrain.views import ViewConfig
from pretrain.weights_source import NONE, Source, find_weights, read_shapes, read_tensors

NAMES_SHOWN = 4
ALTERED = ("deep", "averaged")
Read = Callable[[Source], dict[str, Tensor]]


@dataclass(frozen=True)
class Start:
    """The network of the first stage, and what it brings along."""

    encoder: nn.Module
    lineage: list[dict[str, Any]]
    seen: Seen | None
    starts_from: dict[str, Any] | None


def start(config: EncoderConfig, views: ViewConfig) -> Start:
    """The network with the weights that the config names; says what was loaded. Without any: at random.

    Raises InputError for weights that are missing, damaged, or of another network.
    """
    if config.weights == NONE:
        return Start(create_encoder(config, views.size_px), [], None, None)
    source = find_weights(config)
    encoder, loaded = _loaded(config, source, views, read_tensors)
    origin = {"weights": source.title, "sha256": source.fingerprint(), "seen": "known" if source.card else "unknown"}
    for line in [_said(source, origin["sha256"], loaded), *_other_input(source, views, config)]:
        say(f"encoder.weights: {line}")
    lineage = list(source.card.lineage) if source.card else []
    seen = read_seen(source.folder.location) if source.card else None
    return Start(encoder, lineage, seen, {**origin, **loaded})


def check_start(config: EncoderConfig, views: ViewConfig) -> None:
    """Raise InputError for what `start` would refuse, as far as names and shapes tell."""
    if config.weights != NONE:
        with torch.device("meta"):
            _loaded(config, find_weights(config), views, read_shapes)


def _loaded(config: EncoderConfig, source: Source, views: ViewConfig, read: Read) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the source's weights, fitted to the views' size, and the report."""
    model = create_encoder(config, source.size_px)
    other_size = fixes_size(config) and source.size_px != views.size_px
    if other_size and not can_change_size(model):
        # Its weights may still be the same for every size; if not, their shapes will tell.
        model, other_size = create_encoder(config, views.size_px), False
    report = _load(model, read(source), config, source.where)
    if other_size:
        change_size(model, config, views.size_px)
    return model, report


def _load(model: nn.Module, weights: dict[str, Tensor], config: EncoderConfig, where: str) -> dict[str, Any]:
    """Load what has a name of the network's. Raises InputError for a shape that differs, or where nothing fits."""
    wanted = model.state_dict()
    known = cast(dict[str, Any], model.pretrained_cfg)
    inputs = [f"{name}.weight" for name in _listed(known.get("first_conv"))]
    classifiers = {f"{name}.{part}" for name in _listed(known.get("classifier")) for part in ("weight", "bias")}
    fitted, adapted = {}, []
    for name in (name for name in wanted if name in weights):
        given = weights[name]
        if name in inputs and given.shape[1:2] != wanted[name].shape[1:2]:
            given = _of_channels(given, config.channels)
            adapted.append(name)
        fitted[name] = given
    _check_architecture(wanted, fitted, config, where)
    wrong = next((name for name in wanted if name in fitted and fitted[name].shape != wanted[name].shape), None)
    if wrong:
        raise InputError(
            f"{where}: not the weights of {config.name}: {wrong} is {tuple(weights[wrong].shape)} there, "
            f"{tuple(wanted[wrong].shape)} in {config.name}; set encoder.name to the network that they belong to"
        )
    if not fitted:
        raise InputError(
            f"{where}: not the weights of {config.name}: none of its {len(weights)} tensors has a name of that "
            f"network's (first there: {next(iter(weights), 'none')}, expected: {next(iter(wanted))}); rename them, or "
            "set encoder.name"
        )
    model.load_state_dict(fitted, strict=False)
    missing = [name for name in wanted if name not in fitted and not name.endswith("num_batches_tracked")]
    ignored = [name for name in weights if name not in wanted]
    parameters = dict(model.named_parameters())
    return {
        "loaded": {
            "tensors": len(fitted),
            "parameters": sum(parameters[name].numel() for name in fitted if name in parameters),
        },
        "adapted": adapted,
        "at_random": _few(missing),
        "classifier": [name for name in ignored if name in classifiers],
        "ignored": _few([name for name in ignored if name not in classifiers]),
    }


def _check_architecture(
    wanted: dict[str, Tensor], fitted: dict[str, Tensor], config: EncoderConfig, where: str
) -> None:
    """Weights fix a network's stem and shortcuts. Raises InputError where those asked for are not in them."""
    others = [name for name in wanted if name not in fitted or fitted[name].shape != wanted[name].shape]
    others = [name for name in others if not name.endswith("num_batches_tracked")]
    asked = [f"{key}={getattr(config, key)}" for key in ("stem", "downsample") if getattr(config, key) in ALTERED]
    if fitted and others and asked:
        raise InputError(
            f"{where}: the network of these weights has no {', '.join(asked)} ({others[0]} differs): its architecture "
            "is fixed; leave stem and downsample as they are, or start with encoder.weights=none"
        )


def _of_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for grey images from one for RGB, by the sum over colours, or the other way round."""
    try:
        return adapt_input_conv(channels, weight, base_chans=1 if channels == 3 else 3)
    except (NotImplementedError, AssertionError, RuntimeError):
        return weight


def _said(source: Source, sha256: str, report: dict[str, Any]) -> str:
    """The report in one line."""
    loaded = report["loaded"]
    parts = [f"{loaded['tensors']} tensors with {loaded['parameters'] / 1e6:.3g} M parameters loaded"]
    if report["adapted"]:
        parts.append(f"{', '.join(report['adapted'])} fitted to the channels")
    parts.append(f"left at random: {_shown(report['at_random'])}")
    parts.append(f"ignored: {_shown(report['ignored'])}")
    if report["classifier"]:
        parts.append(f"classifier left out: {', '.join(sorted(report['classifier']))}")
    return f"{source.title} (SHA-256 {sha256[:12]}): {'; '.join(parts)}"


def _other_input(source: Source, views: ViewConfig, config: EncoderConfig) -> list[str]:
    """A line where the weights expect pixels of another scale than the views give."""
    there = [tuple(source.input.get(key) or getattr(views, key)) for key in ("mean", "std")]
    here = [tuple(getattr(views, key)) for key in ("mean", "std")]
    if [values[: config.channels] for values in there] == [values[: config.channels] for values in here]:
        return []
    return [
        f"these weights were made with mean {list(there[0])} and std {list(there[1])}; views.mean and views.std differ"
    ]


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _few(names: list[str]) -> dict[str, Any]:
    return {"tensors": len(names), "first": names[:NAMES_SHOWN]}


def _shown(names: dict[str, Any]) -> str:
    if not names["tensors"]:
        return "none"
    more = names["tensors"] - len(names["first"])
    return ", ".join(names["first"]) + (f" and {more} more" if more else "")
