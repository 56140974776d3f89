"""Where a model looked: Grad-CAM of convolutional networks, attention rollout of transformers.

Grad-CAM (Selvaraju et al., 2017, eq. 1 and 2): a feature map weighs the mean of the gradient of the class's logit
over it, and what is left of their weighted sum above zero speaks for the class. Attention rollout (Abnar & Zuidema,
2020, section 3): the attention of all layers multiplied, half of each layer being its residual path; it says where
information came from, the same for every class.
Shapes: B images, C channels, H and W pixels, K labels, M maps of h and w fields, L layers, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MIN_FIELDS = 4
"""Fields a side that a convolutional map has at least, where the network has such a layer: at 64 px the last layer
of most has two, which point nowhere."""


@dataclass(frozen=True)
class Saliency:
    """Maps (B, h, w) in 0..1, each with its largest field at 1 unless it is empty; `method` and `layer` say of what.

    `of_class` tells whether they speak of one class or of the image as a whole.
    """

    maps_BHW: NDArray[np.float32]
    method: str
    layer: str
    of_class: bool


def saliency(model: nn.Module, images_BCHW: Tensor, label_B: Tensor) -> Saliency | None:
    """Where the model, normalised images to logits (B, K), looked for label k of each image.

    None for a network that has neither maps nor attention that can be seen. The model keeps its mode, weights and
    gradients; it should be in evaluation mode.
    """
    backbone = _backbone(model)
    if backbone is None:
        return None
    attention = [module for module in backbone.modules() if _tells_attention(module)]
    if _is_vision_transformer(backbone) and attention:
        return _rolled_out(model, backbone, attention, images_BCHW)
    return _grad_cam(model, backbone, images_BCHW, label_B)


def grad_cam(maps_BMHW: Tensor, gradients_BMHW: Tensor) -> Tensor:
    """(B, h, w): the positive part of the maps' sum, each weighed by the mean of its gradient (eq. 1 and 2)."""
    weights_BM11 = gradients_BMHW.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights_BM11 * maps_BMHW).sum(dim=1))


def attention_rollout(attention_LBHTT: Sequence[Tensor]) -> Tensor:
    """(B, T, T): how much of each token (column) is in each token (row) after the last layer.

    Takes each layer's attention over its heads; their mean, and the residual path at equal weight.
    """
    rolled: Tensor | None = None
    for heads_BHTT in attention_LBHTT:
        mean_BTT = heads_BHTT.float().mean(dim=1)
        mixed = (mean_BTT + torch.eye(mean_BTT.shape[-1], device=mean_BTT.device)) / 2
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        rolled = mixed if rolled is None else mixed @ rolled
    assert rolled is not None
    return rolled


def _grad_cam(model: nn.Module, backbone: nn.Module, images_BCHW: Tensor, label_B: Tensor) -> Saliency | None:
    names = [str(stage["module"]) for stage in backbone.feature_info]  # type: ignore[union-attr]
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            kept[name] = output
            return output.clone()  # what follows may work in place

        return keep

    with _hooks((backbone.get_submodule(name), keeper(name)) for name in names), torch.enable_grad():
        # Gradients of maps are wanted even where the network is frozen: they begin at the image.
        logits_BK = model(images_BCHW.detach().requires_grad_())
        chosen = _deepest(kept, names)
        if chosen is None:
            return None
        wanted = logits_BK.float().gather(1, label_B.view(-1, 1).to(logits_BK.device)).sum()
        (gradients,) = torch.autograd.grad(wanted, kept[chosen])
    maps = kept[chosen].detach()
    if _channels_last(maps):
        maps, gradients = maps.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    return Saliency(_to_one(grad_cam(maps.float(), gradients.float())), "Grad-CAM", chosen, True)


def _rolled_out(model: nn.Module, backbone: Any, attention: list[Any], images_BCHW: Tensor) -> Saliency | None:
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output.detach())

    with _hooks((module.attn_drop, keep) for module in attention), _not_fused(attention), torch.no_grad():
        model(images_BCHW)
    prefix = int(backbone.num_prefix_tokens)
    side = round((seen[0].shape[-1] - prefix) ** 0.5)
    if side * side + prefix != seen[0].shape[-1]:
        return None
    rolled_BTT = attention_rollout(seen)
    # What the head reads: the class token or, where the patches are averaged, all of them.
    reads_class_token = prefix > 0 and getattr(backbone, "global_pool", "") == "token"
    read_BT = rolled_BTT[:, 0] if reads_class_token else rolled_BTT[:, prefix:].mean(dim=1)
    fields = read_BT[:, prefix:].reshape(-1, side, side)
    return Saliency(_to_one(fields), "attention rollout", f"{len(seen)} layers", False)


def _backbone(model: nn.Module) -> nn.Module | None:
    """The network of timm in a model, whatever it is wrapped in."""
    return next((m for m in model.modules() if isinstance(getattr(m, "feature_info", None), list)), None)


def _is_vision_transformer(backbone: nn.Module) -> bool:
    return hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens")


def _tells_attention(module: nn.Module) -> bool:
    """Whether it is timm's attention over all tokens, which computes its matrix when told not to fuse."""
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)


def _deepest(kept: dict[str, Tensor], names: list[str]) -> str | None:
    """The last layer whose maps have MIN_FIELDS a side, else that with most; None where no layer has maps."""
    mapped = [name for name in names if name in kept and kept[name].ndim == 4]
    if not mapped:
        return None
    fields = {name: kept[name].shape[2] for name in mapped}  # of both orders: the side, images being square
    large = [name for name in mapped if fields[name] >= MIN_FIELDS]
    return large[-1] if large else max(mapped, key=lambda name: fields[name])


def _channels_last(maps: Tensor) -> bool:
    """Whether maps are (B, h, w, M), as Swin's: images are square, so height and width agree."""
    return maps.shape[1] == maps.shape[2] != maps.shape[3]


def _to_one(maps_BHW: Tensor) -> NDArray[np.float32]:
    """Each map divided by its largest field; an empty one stays empty."""
    largest = maps_BHW.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps_BHW / largest.clamp_min(1e-30), 0.0).float().cpu().numpy()


@contextmanager
def _hooks(wanted: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _not_fused(attention: list[Any]) -> Iterator[None]:
    before = [module.fused_attn for module in attention]
    try:
        for module in attention:
            module.fused_attn = False
        yield
    finally:
        for module, was in zip(attention, before):
            module.fused_attn = was
