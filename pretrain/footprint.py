"""What a training step needs: memory, arithmetic and memory traffic, counted without a GPU and without computing.

The stage's own module runs forward and backward on fake tensors, which have shapes and no numbers, at a real batch
size and under the run's own autocast; what it allocates, saves for backward, multiplies and moves is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.compute import checkpoint_activations
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig
from pretrain.ledger import Ledger, num_bytes
from pretrain.methods import METHODS
from pretrain.methods.method import Method
from pretrain.optim import build_optimizer
from pretrain.stage import StageConfig
from pretrain.training import build_module

COUNTED_AT = (256, 512)
"""Samples of the two batches that are counted: so many that activations, not weights, make the peak."""
READY_BATCHES = 2
"""uint8 batches on the device: the one in work and the one on its way."""
KEPT_FREE, KEPT_FREE_SHARE = 1.5e9, 0.05
"""Bytes and share of a card left to the driver, cuDNN's and NCCL's workspaces and to fragments: an assumption."""


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
    module = module_without_numbers(config, number)
    if config.compute.checkpoint_activations if recompute is None else recompute:
        checkpoint_activations(module.encoder, config.encoder.name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer = _stepped(module, stage)
        small, large = (_count(module, optimizer, config, size, batch) for batch in COUNTED_AT)
    lines = {name: _line(getattr(small, name), getattr(large, name)) for name in ("held", "peak", "flops", "traffic")}
    encoder, weights = (sum(p.numel() for p in m.parameters()) for m in (module.encoder, module))
    return Footprint(
        encoder_parameters=encoder,
        head_parameters=weights - encoder,
        weights=num_bytes([*module.parameters(), *module.buffers()]),
        gradients=num_bytes(p for p in module.parameters() if p.requires_grad),
        optimiser=_moments(optimizer),
        averages=_averages(module) if stage.ema else 0,
        update=large.update,
        input_per_sample=2 * 3 * size * size,  # in colours, also for an encoder of grey images
        loss=partial(METHODS[stage.method].loss_bytes, stage),  # type: ignore[arg-type]
        **lines,
    )


def checkpoint_bytes(config: PretrainConfig, number: int) -> int:
    """`Footprint.checkpoint` of a stage, without counting a step."""
    module, stage = module_without_numbers(config, number), config.stages[number]
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer = _stepped(module, stage)
    weights = num_bytes([*module.parameters(), *module.buffers()])
    return weights + _moments(optimizer) + (_averages(module) if stage.ema else 0)


def _stepped(module: Method, stage: StageConfig) -> torch.optim.Optimizer:
    """An optimiser that has taken a step and so holds its state, within a mode of fake tensors."""
    module.to_empty(device="cpu")
    optimizer = build_optimizer(module, stage.optim)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return optimizer


def _moments(optimizer: torch.optim.Optimizer) -> int:
    return num_bytes(value for state in optimizer.state.values() for value in state.values())


@dataclass(frozen=True)
class _Count:
    held: float
    peak: float
    update: int
    flops: float
    traffic: float


def module_without_numbers(config: PretrainConfig, number: int) -> Method:
    """The stage's module with shapes alone, whatever weights it would start from."""
    structure = {k: v for k, v in config.encoder.model_dump().items() if k != "weights"}
    plain = config.model_copy(update={"encoder": EncoderConfig.model_validate(structure)})
    with torch.device("meta"):
        return build_module(plain, number, None)[0]


def _averages(module: Method) -> int:
    """Bytes of what `averaging.Averages` keeps: numbers of encoder and heads, statistics of batch norms included."""
    kept = [tensor for part in (module.encoder, *module.heads.values()) for tensor in part.state_dict().values()]
    return num_bytes(tensor for tensor in kept if tensor.is_floating_point())


def _count(
    module: Method, optimizer: torch.optim.Optimizer, config: PretrainConfig, size: int, num_samples: int
) -> _Count:
    """One step at a batch size, within a mode of fake tensors."""
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    kept = (*module.parameters(), *module.buffers(), *gradients, *state)
    known = {tensor.untyped_storage()._cdata for tensor in kept}
    ledger = Ledger(known)
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


def _line(small: float, large: float) -> Linear:
    low, high = COUNTED_AT
    slope = (large - small) / (high - low)
    return Linear(small - slope * low, slope)
