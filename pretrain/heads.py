"""Projection heads, and the first layers of one as a part of the encoder that is handed on.

SimCLR v2 (Chen et al., 2020, section 2.1) fine-tunes from a middle layer of a deeper head. A layer is a linear map
with its batch norm and its activation. Shapes: B images, F features, D projected features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusters.config import InputError

if TYPE_CHECKING:
    from lightly.models.modules.heads import ProjectionHead


def projection_head(num_features: int, hidden: int, dim: int, num_layers: int) -> "ProjectionHead":
    """SimCLR's head: (B, F) to (B, D) by two layers, or three as in SimCLR v2."""
    from lightly.models.modules.heads import SimCLRProjectionHead

    return SimCLRProjectionHead(num_features, hidden, dim, num_layers)


class EncoderWithHead(nn.Module):
    """An encoder followed by the first layers of its projection head: images to features (B, num_features)."""

    def __init__(self, encoder: nn.Module, head: nn.Module, num_features: int) -> None:
        super().__init__()
        self.encoder, self.head, self.num_features = encoder, head, num_features

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features after the last kept layer."""
        return self.head(self.encoder(images_BCHW))


def first_layers(head: nn.Module, count: int) -> "ProjectionHead | None":
    """The first layers of a head, sharing its parameters and buffers; None for none.

    Raises InputError where it has fewer.
    """
    if not count:
        return None
    from lightly.models.modules.heads import ProjectionHead

    modules = list(head.layers)  # type: ignore[arg-type]
    starts = [place for place, module in enumerate(modules) if isinstance(module, nn.Linear)]
    if count > len(starts):
        raise InputError(f"keep_projection_layers: {count}, but the projection head has {len(starts)} layers")
    kept = ProjectionHead([])
    kept.layers = nn.Sequential(*modules[: [*starts, len(modules)][count]])
    return kept


def describe_layers(head: nn.Module) -> list[dict[str, Any]]:
    """A head's layers as plain values, from which `head_of` makes one of the same form."""
    found: list[dict[str, Any]] = []
    for module in head.layers:  # type: ignore[union-attr]
        if isinstance(module, nn.Linear):
            layer = {"inputs": module.in_features, "outputs": module.out_features, "bias": module.bias is not None}
            found.append({**layer, "batch_norm": None, "relu": False})
        elif isinstance(module, _BatchNorm):
            found[-1]["batch_norm"] = {"eps": module.eps, "affine": module.affine}
        elif isinstance(module, nn.ReLU):
            found[-1]["relu"] = True
        else:
            raise InputError(f"keep_projection_layers: a head with {type(module).__name__} cannot be handed on; set 0")
    return found


def head_of(layers: Sequence[dict[str, Any]]) -> "ProjectionHead":
    """A head of the form that `describe_layers` told, with fresh weights."""
    from lightly.models.modules.heads import ProjectionHead

    return ProjectionHead(
        [
            (
                layer["inputs"],
                layer["outputs"],
                nn.BatchNorm1d(layer["outputs"], **layer["batch_norm"]) if layer["batch_norm"] else None,
                nn.ReLU() if layer["relu"] else None,
                layer["bias"],
            )
            for layer in layers
        ]
    )
