"""A model made ready for answers rather than for training, and how long one image takes.

Shapes: B batch, H and W pixels.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clusters.storage import Folder
from finetune.model import Model
from finetune.model_folder import load_model, record_latency

WARM_UP, TIMED = 3, 15


class _Tracer(fx.Tracer):
    """Norms stay whole, timm's with an activation inside too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def for_inference(model: Model) -> Model:
    """The model with batch norms folded into the convolutions before them, in place: the same up to rounding.

    A network that cannot be traced (its path depends on the input) stays as it is.
    """
    try:
        graph = _Tracer().trace(model.encoder)
    except Exception:  # tracing refuses with errors of any kind
        return model
    model.encoder = _folded(fx.GraphModule(model.encoder, graph)).eval()
    return model.requires_grad_(False)


def single_image_latency(model: Model, device: torch.device) -> dict[str, Any]:
    """Milliseconds from one image's pixels on the host to its probabilities, on a device: median and 90th percentile.

    The model is moved there. Decoding the file is not in it.
    """
    model.to(device)
    pixels = np.zeros((1, 3, model.card.size_px, model.card.size_px), dtype=np.uint8)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "runs": f"torch {torch.__version__}",
        **timed(lambda: model.probabilities(model.logits(pixels))),
    }


def measure_latency(folder: Folder) -> None:
    """Write into a model's card how long one image takes on this machine's CPU, and on its GPU where there is one."""
    model = for_inference(load_model(folder.location))
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    record_latency(folder, [single_image_latency(model, device) for device in devices])


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Median and 90th percentile of what a piece of work takes here, ms, once it is warm."""
    for _ in range(WARM_UP):
        work()
    took = sorted(_milliseconds(work) for _ in range(TIMED))
    return {
        "median_ms": round(statistics.median(took), 2),
        "p90_ms": round(took[int(0.9 * (TIMED - 1))], 2),
        "images_timed": TIMED,
        "threads": torch.get_num_threads(),
    }


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()  # ends with a copy to the host, which waits for the device
    return 1000 * (time.perf_counter() - started)


def _folded(network: fx.GraphModule) -> fx.GraphModule:
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in network.graph.nodes)
    for node in list(network.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution = modules[str(before.target)]
        # Exactly that class: timm's own pad or standardise their weights first.
        shared = len(before.users) > 1 or calls[str(before.target)] > 1 or calls[str(node.target)] > 1
        if type(convolution) is not nn.Conv2d or shared or not _folds(norm):
            continue
        fused = fuse_conv_bn_eval(convolution, norm)
        network.set_submodule(str(before.target), fused)
        modules[str(before.target)] = fused
        if hasattr(norm, "act"):  # timm's BatchNormAct2d: the activation stays
            network.set_submodule(str(node.target), norm.act)  # type: ignore[arg-type]
        else:
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
    network.graph.lint()
    network.recompile()
    return network


def _folds(norm: nn.BatchNorm2d) -> bool:
    """Whether it uses statistics of training, as batch norms do in evaluation, and nothing besides."""
    return norm.running_mean is not None and norm.weight is not None
