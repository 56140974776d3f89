"""How a step is computed: what may be traded between memory, speed and the sizes at hand."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from clusters.config import Config, InputError

GIB = 1 << 30


class ComputeConfig(Config):
    """How a step is computed. All but batch_norm_group and compile may change between resumes."""

    batch_norm_group: int | None = Field(
        default=None,
        ge=2,
        description="batch norm over groups of so many samples' views, held by one worker or several; none: over the "
        "global batch",
    )
    checkpoint_activations: bool = Field(
        default=False, description="compute the encoder's activations twice rather than keep them: less memory, slower"
    )
    compile: bool = Field(
        default=False, description="torch.compile the encoder for training; needs a C++ compiler, differs by rounding"
    )
    # Off: ResNet-18, bf16, 8 images of 224 px on one CPU core took 1.08 s compiled and 1.01 s as it is (best of 6).
    deterministic: bool = Field(
        default=False,
        description="on a GPU, sums in one order, so that a resumed run is the undisturbed one to the bit as it is on "
        "a CPU; slower, and refused by operations that have no such form",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="where a loss or gradient is not finite, whose step is never taken; stop: end the run and name the "
        "batch; skip: name it and go on",
    )


def in_one_order(deterministic: bool) -> None:
    """Have this process's GPU add up in one order, or as is fastest. To be called before it first computes."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)


def ranks_per_group(samples: int | None, batch_size: int, num_ranks: int, where: str) -> int | None:
    """How many consecutive ranks share batch-norm statistics where groups of so many samples do; None: all.

    Ranks hold consecutive parts of one line, the global batch sorted by stream (`data.loader.positions_of`), so
    groups of whole ranks are the same samples for any number of ranks. Parts of a rank's share would not be: a
    group smaller than a share is refused, with InputError.
    """
    if samples is None or samples == batch_size:
        return None
    share = batch_size // num_ranks
    if batch_size % samples:
        raise InputError(
            f"compute.batch_norm_group: {samples} does not divide {where}.batch_size, {batch_size}; choose a divisor"
        )
    if samples % share:
        raise InputError(
            f"compute.batch_norm_group: groups of {samples} of {batch_size} samples need {batch_size // samples} "
            f"workers or a multiple of that, each with a part of one group; cluster.num_workers gives {num_ranks}, "
            f"which hold {share} samples each"
        )
    return samples // share


def checkpoint_activations(encoder: nn.Module, name: str) -> None:
    """Have a timm network keep the inputs of its blocks alone, in place. Raises InputError where it cannot."""
    try:
        encoder.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError, TypeError):
        raise InputError(
            f"compute.checkpoint_activations: timm cannot checkpoint '{name}'; leave it false, or choose an encoder "
            "such as resnet50, convnext_tiny or vit_small_patch16_224"
        ) from None


def compile_for_training(encoder: nn.Module) -> None:
    """torch.compile the encoder's forward in training mode, in place; its names and parameters stay what they are.

    Evaluation, whose batches are of many sizes, goes on as it was. With several workers the graph is cut at each
    global batch norm, whose collectives cannot be compiled.
    """
    eager, compiled = encoder.forward, torch.compile(encoder.forward)

    def forward(*inputs: Any) -> Any:
        return compiled(*inputs) if encoder.training else eager(*inputs)

    encoder.forward = forward


@contextmanager
def refused_where_memory_is_short(what: str, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into one InputError with the numbers."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        problem = str(error)
        if not re.search("out of memory|can't allocate memory|STATUS_ALLOC_FAILED", problem):
            raise
        raise InputError(
            f"{what} does not fit into memory: {_memory(problem, device)}. Use more workers, "
            "compute.checkpoint_activations=true, smaller views (views.size_px), a smaller encoder or a smaller "
            "batch_size. Accumulating smaller batches would be another method: each sample is told apart from all "
            "others of its batch"
        ) from error


def _memory(problem: str, device: torch.device) -> str:
    asked = re.search(r"allocate (\d[\d.]*) (\w+)", problem)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        told = (
            f"{device} has {total / GIB:.1f} GiB, {held / GIB:.1f} GiB held by this step and {free / GIB:.1f} GiB free"
        )
    else:
        told = f"this machine has {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB"
    if asked is None:
        return told
    number, unit = float(asked[1]), asked[2]
    return told + (f", {number / GIB:.1f} GiB" if unit == "bytes" else f", {asked[1]} {unit}") + " more were asked for"
