"""The state that a stage trains, and one optimiser step of it.

Shapes: V views, B samples on this rank, G kinds of group.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from clusters import distributed
from clusters.batch_norm import RunningStatistics, global_batch_norm
from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import say
from data.order import keyed_generator
from pretrain.averaging import Averages
from pretrain.compute import (
    checkpoint_activations,
    compile_for_training,
    ranks_per_group,
    refused_where_memory_is_short,
)
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import load_backbone, load_weights, read_seen
from pretrain.heads import first_layers
from pretrain.initial_weights import Start, start
from pretrain.methods import METHODS
from pretrain.methods.method import Method, Output
from pretrain.nonfinite import norm_of_gradients
from pretrain.optim import build_optimizer, learning_rate
from pretrain.stage_folder import harm_of_heads


class Training:
    """A method's module with its optimiser, on this rank's device.

    `step` is a function of the state, the batch and the step's number alone; `state` is all that a checkpoint
    needs. `health` is (gradient norm over all ranks, 1 if the last step was taken else 0), on the device.
    """

    health: Tensor

    def __init__(self, config: PretrainConfig, number: int, module: Method, total_steps: int) -> None:
        self.config, self.number, self.total_steps = config, number, total_steps
        self.stage, compute = config.stages[number], config.compute
        self.device = distributed.device()
        self.module = module
        module.begin()
        if compute.checkpoint_activations:
            checkpoint_activations(module.encoder, config.encoder.name)
        self._ranks_per_group = ranks_per_group(
            compute.batch_norm_group, self.stage.batch_size, distributed.world_size(), f"stages.{number}"
        )
        global_batch_norm(module, self._ranks_per_group)
        module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compute.compile:
            compile_for_training(module.encoder)
        self._statistics = RunningStatistics(module)
        self.optimizer = build_optimizer(module, self.stage.optim)
        self._averages = (
            Averages({"encoder": module.encoder, **module.heads}, self.stage.ema) if self.stage.ema else None
        )
        self._parallel = distributed.data_parallel(module)

    def step(self, step: int, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Forward, backward and update at a step from 0 to total_steps - 1; waits for nothing.

        Where the loss or its gradient is not finite, no weight, statistic, optimiser state or average changes, on
        any rank. Raises InputError with the numbers where memory runs out.
        """
        # Networks that draw numbers (stochastic depth) draw the same after a resume
        key = ("step", self.config.seed, self.number, step, distributed.rank())
        torch.manual_seed(int(keyed_generator(*key).random_raw() >> 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)

        # Gradient of the global batch
        before = self._statistics.copy()
        num_views, num_samples, *_, size_px = views_VBCHW.shape
        what = f"a step with {num_samples} samples on a worker ({num_views * num_samples} views of {size_px} px)"
        with refused_where_memory_is_short(f"{self.config.stage_name(self.number)}: {what}", self.device):
            output = self._gradient(views_VBCHW, groups_VBG)
        if self._ranks_per_group is not None:
            self._statistics.average()

        # Update, of nothing where it would do harm
        norm = norm_of_gradients(self.module.parameters())
        good = norm.isfinite()
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self._statistics.restore_unless(good, before)
        self.module.after_step((step + 1) / self.total_steps, good.float())
        if self._averages is not None:
            self._averages.update(step, good.float())
        self.health = torch.stack([norm, good.float()])
        return output

    def _gradient(self, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output: Output = self._parallel(views_VBCHW, groups_VBG)
        self.optimizer.zero_grad(set_to_none=True)
        # With checkpointed activations, backward runs a second forward, which moves running statistics again
        moved = self._statistics.copy() if self.config.compute.checkpoint_activations else None
        with distributed.averaging_gradients():
            output.loss.backward()
        if moved is not None:
            self._statistics.restore(moved)
        return output

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.stage.optim, step, self.total_steps, self.stage.batch_size)

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the module holds what is to be probed, exported and handed on: the averages, where there are any."""
        return nullcontext() if self._averages is None else self._averages.in_place()

    def state(self) -> dict[str, Any]:
        """Everything that changes from step to step."""
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self._averages is None else {**state, "averages": self._averages.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._averages is not None:
            self._averages.load_state(state["averages"])


def build_module(
    config: PretrainConfig, number: int, previous: Folder | None, restored: bool = False
) -> tuple[Method, Start]:
    """The module with the weights that it starts from: drawn, given, or of the stage before; and whence those come.

    `restored`: a checkpoint will take their place, so that the heads of the stage before are not looked at.
    """
    stage, views = config.stages[number], config.stage_views(number)
    torch.manual_seed(config.seed * 1000 + number)
    if previous is None:
        begun = start(config.encoder, views)
    else:
        encoder, card = load_backbone(str(previous), views.size_px)
        seen = read_seen(str(previous)) if distributed.is_main() else None  # only rank 0 writes it
        begun = Start(encoder, list(card.lineage), seen, None)
    module = METHODS[stage.method](stage, begun.encoder, int(begun.encoder.num_features))  # type: ignore[arg-type]
    first_layers(module.projection, stage.keep_projection_layers)  # refused now rather than at the end
    if previous is not None and not restored:
        _load_heads(module, previous, config.stage_name(number))
    return module, begun


def _load_heads(module: Method, previous: Folder, stage_name: str) -> None:
    if harm := harm_of_heads(previous):
        raise InputError(
            f"{previous}: {harm}, from which {stage_name} starts; restore it from a backup, or remove {previous} to do "
            "it again"
        )
    for name, head in module.heads.items():
        file = f"{name}.safetensors"
        weights = safetensors.torch.load(previous.read(file)) if previous.exists(file) else {}
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in head.state_dict().items()}:
            load_weights(head, weights, previous.file(file), f"{name} head")
        else:
            say(f"{stage_name}: the {name} head starts anew, since the stage before left none of its shape")


def write_heads(module: Method, folder: Folder) -> dict[str, str]:
    """Leave the heads for the next stage; returns the SHA-256 of each file."""
    hashes = {}
    for name, head in module.heads.items():
        content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()})
        folder.write(f"{name}.safetensors", content)
        hashes[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
    return hashes
