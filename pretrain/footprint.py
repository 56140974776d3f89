"""What a training step needs: memory, arithmetic and memory traffic, counted without a GPU and without computing.

The stage's own module runs forward and backward on fake tensors, which have shapes and no numbers, at a real batch
size and under the run's own autocast; what it allocates, saves for backward, multiplies and moves is counted.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from clusters import distributed
from clusters.config import InputError
from clusters.tracking import say
from pretrain.compute import checkpoint_activations
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig
from pretrain.methods import METHODS
from pretrain.methods.method import Method
from pretrain.optim import build_optimizer
from pretrain.training import build_module

COUNTED_AT = (256, 512)
"""Samples of the two batches that are counted: so many that activations, not weights, make the peak."""
READY_BATCHES = 2
"""uint8 batches on the device: the one in work and the one on its way."""
KEPT_FREE, KEPT_FREE_SHARE = 1.5e9, 0.05
"""Bytes and share of a card left to the driver, cuDNN's and NCCL's workspaces and to fragments: an assumption."""
READ_TWICE = ("aten.native_batch_norm", "aten.native_layer_norm", "aten.native_group_norm", "aten.cudnn_batch_norm")
"""Normalisation reads its input once for the statistics and once to apply them, forward and backward."""


@dataclass(frozen=True)
class Linear:
    """A quantity that grows with the samples of a batch."""

    fixed: float
    per_sample: float

    def __call__(self, num_samples: int) -> float:
        """The quantity of a batch of so many samples."""
        return self.fixed + self.per_sample * num_samples


@dataclass(frozen=True)
class Footprint:
    """What one worker needs for a stage, bytes and floating-point operations.

    `state` is what lives from step to step (weights, gradients, optimiser, averages), `held` what stays from forward
    to backward, `peak` the most that forward and backward hold at once, `update` the most that the optimiser does; all
    three are above the state, and the views are among them. `loss(samples, workers)` is what the loss holds besides.
    """

    encoder_parameters: int
    head_parameters: int
    weights: int
    gradients: int
    optimiser: int
    averages: int
    held: Linear
    peak: Linear
    update: int
    flops: Linear
    traffic: Linear
    input_per_sample: int
    loss: Callable[[int, int], int]

    @property
    def state(self) -> int:
        """Bytes that live from step to step."""
        return self.weights + self.gradients + self.optimiser + self.averages

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return self.weights + self.optimiser + self.averages

    def needed(self, num_samples: int, num_workers: int) -> float:
        """Bytes of a worker that has so many samples of the global batch."""
        ready = READY_BATCHES * self.input_per_sample * num_samples
        return self.state + max(self.peak(num_samples), self.update) + self.loss(num_samples, num_workers) + ready

    def largest(self, device_bytes: int, num_workers: int) -> int:
        """The most samples a worker can have on a device of so much memory; 0 where not even one fits."""
        fits, too_many = 0, 1 << 20
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.needed(middle, num_workers) <= usable(device_bytes):
                fits = middle
            else:
                too_many = middle
        return fits

    def workers_for(self, batch_size: int, device_bytes: int) -> int | None:
        """The fewest workers among which a global batch can be divided equally so that it fits, if any."""
        divisors = (number for number in range(1, batch_size // 2 + 1) if batch_size % number == 0)
        return next((w for w in divisors if self.needed(batch_size // w, w) <= usable(device_bytes)), None)


def usable(device_bytes: int) -> float:
    """What of a card's memory the step itself can have."""
    return device_bytes * (1 - KEPT_FREE_SHARE) - KEPT_FREE


def footprint(config: PretrainConfig, number: int, recompute: bool | None = None) -> Footprint:
    """Count a stage, with activations computed twice (checkpointed) or not; none: as the config has it.

    Raises InputError where the encoder does not exist.
    """
    size, stage = config.stage_views(number).size_px, config.stages[number]
    module = _without_numbers(config, number)
    if config.compute.checkpoint_activations if recompute is None else recompute:
        checkpoint_activations(module.encoder, config.encoder.name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = build_optimizer(module, stage.optim)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        small, large = (_count(module, optimizer, config, size, batch) for batch in COUNTED_AT)
    lines = {name: _line(getattr(small, name), getattr(large, name)) for name in ("held", "peak", "flops", "traffic")}
    encoder, weights = (sum(p.numel() for p in m.parameters()) for m in (module.encoder, module))
    return Footprint(
        encoder_parameters=encoder,
        head_parameters=weights - encoder,
        weights=_bytes([*module.parameters(), *module.buffers()]),
        gradients=_bytes(parameters),
        optimiser=_bytes(value for state in optimizer.state.values() for value in state.values()),
        averages=_averages(module) if stage.ema else 0,
        update=large.update,
        input_per_sample=2 * 3 * size * size,  # in colours, also for an encoder of grey images
        loss=partial(METHODS[stage.method].loss_bytes, stage),  # type: ignore[arg-type]
        **lines,
    )


def check_memory(config: PretrainConfig, numbers: Sequence[int]) -> None:
    """Raise InputError on all ranks where one of these stages does not fit on their GPUs; nothing without GPUs."""
    memories = distributed.gather_objects(distributed.device_memory())
    if None in memories:
        return
    problem = None
    if distributed.is_main():
        try:
            for number in numbers:
                check_fits(config, number, min(memories), len(memories))
        except InputError as error:
            problem = error
    distributed.stop_together(problem)


def check_fits(config: PretrainConfig, number: int, device_bytes: int, num_workers: int) -> None:
    """Raise InputError, with the numbers, where a stage's batch does not fit on GPUs of so many bytes.

    A contrastive batch cannot be accumulated from smaller ones: each sample's negatives are all the others. Where the
    network is compiled, which may keep less than is counted here, the same is said and nothing is raised.
    """
    needs, share = footprint(config, number), config.stages[number].batch_size // num_workers
    if needs.needed(share, num_workers) <= usable(device_bytes):
        return
    problem = what_does_not_fit(needs, config.stages[number].batch_size, device_bytes, num_workers)
    if not config.compute.compile:
        raise InputError(f"stages.{number}.batch_size: {problem}")
    say(f"{config.stage_name(number)}: as it is without compute.compile, {problem}")


def what_does_not_fit(needs: Footprint, batch_size: int, device_bytes: int, num_workers: int) -> str:
    """The numbers and the mend, for a stage that is too large for a device."""
    share, more = batch_size // num_workers, needs.workers_for(batch_size, device_bytes)
    mends = [f"on {more} GPUs or more it fits"] if more is not None else ["no number of such GPUs is enough"]
    largest = needs.largest(device_bytes, num_workers)
    if largest * num_workers >= 2:
        mends.append(f"on {num_workers} at most batch_size={largest * num_workers}")
    return (
        f"{share} samples a GPU need {needs.needed(share, num_workers) / 1e9:.1f} GB and "
        f"{usable(device_bytes) / 1e9:.1f} of {device_bytes / 1e9:.0f} GB can be used; {', '.join(mends)} "
        "(a contrastive batch cannot be accumulated)"
    )


@dataclass(frozen=True)
class _Count:
    held: float
    peak: float
    update: int
    flops: float
    traffic: float


def _without_numbers(config: PretrainConfig, number: int) -> Method:
    """The stage's module with shapes alone, whatever weights it would start from."""
    structure = {k: v for k, v in config.encoder.model_dump().items() if k != "weights"}
    plain = config.model_copy(update={"encoder": EncoderConfig.model_validate(structure)})
    with torch.device("meta"):
        return build_module(plain, number, None)[0]


def _averages(module: Method) -> int:
    """Bytes of what `averaging.Averages` keeps: numbers of encoder and heads, statistics of batch norms included."""
    kept = [tensor for part in (module.encoder, *module.heads.values()) for tensor in part.state_dict().values()]
    return _bytes(tensor for tensor in kept if tensor.is_floating_point())


def _count(
    module: Method, optimizer: torch.optim.Optimizer, config: PretrainConfig, size: int, num_samples: int
) -> _Count:
    """One step at a batch size, within a mode of fake tensors."""
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    kept = (*module.parameters(), *module.buffers(), *gradients, *state)
    known = {tensor.untyped_storage()._cdata for tensor in kept}
    ledger = _Ledger(known)
    with ledger:
        views_NCHW = torch.empty(2 * num_samples, config.encoder.channels, size, size).contiguous(
            memory_format=torch.channels_last
        )
        groups_VBG = torch.zeros(2, num_samples, 1, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            output = module(views_NCHW.unflatten(0, (2, num_samples)), groups_VBG)
        held = ledger.now
        output.loss.backward()
        del output, views_NCHW, groups_VBG
        peak, ledger.peak = ledger.peak, 0
        optimizer.step()
    return _Count(held, peak, ledger.peak, ledger.flops, ledger.traffic)


class _Ledger(TorchDispatchMode):
    """Bytes alive now and at the most, of all storages but those in `known`; operations done and bytes moved."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.traffic = 0
        self._known = set(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        for tensor in made:
            self._enter(tensor.untyped_storage())
        if made and not func.is_view and func.namespace != "prim" and "empty" not in func.__name__:
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            times = 2 if str(func).startswith(READ_TWICE) else 1
            self.traffic += times * _bytes(read) + _bytes(made)
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())

    def _leave(self, number: int, nbytes: int) -> None:
        self._known.discard(number)
        self.now -= nbytes


def _line(small: float, large: float) -> Linear:
    low, high = COUNTED_AT
    slope = (large - small) / (high - low)
    return Linear(small - slope * low, slope)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
