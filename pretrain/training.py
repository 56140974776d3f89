"""The state that a stage trains, and one optimiser step of it.

Shapes: V views, B samples on this rank, G kinds of group.
"""

from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from clusters import distributed
from clusters.storage import Folder
from clusters.tracking import say
from data.order import keyed_generator
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import load_backbone, load_weights, read_seen
from pretrain.heads import first_layers
from pretrain.initial_weights import Start, start
from pretrain.methods import METHODS
from pretrain.methods.method import Method, Output
from pretrain.optim import build_optimizer, learning_rate


class Training:
    """A method's module with its optimiser, on this rank's device.

    `step` is a function of the state, the batch and the step's number alone; `state` is all that a checkpoint
    needs.
    """

    def __init__(self, config: PretrainConfig, number: int, module: Method, total_steps: int) -> None:
        self.config, self.number, self.total_steps = config, number, total_steps
        self.stage = config.stages[number]
        self.device = distributed.device()
        self.module = module
        module.begin()
        distributed.global_batch_norm(module)
        module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(module, self.stage.optim)
        self._parallel = distributed.data_parallel(module)

    def step(self, step: int, views_VBCHW: Tensor, groups_VBG: Tensor) -> Output:
        """Forward, backward and update at a step from 0 to total_steps - 1; waits for nothing."""
        # Networks that draw numbers (stochastic depth) draw the same after a resume
        key = ("step", self.config.seed, self.number, step, distributed.rank())
        torch.manual_seed(int(keyed_generator(*key).random_raw() >> 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output: Output = self._parallel(views_VBCHW, groups_VBG)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        self.module.after_step((step + 1) / self.total_steps)
        return output

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.stage.optim, step, self.total_steps, self.stage.batch_size)

    def state(self) -> dict[str, Any]:
        """Everything that changes from step to step."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def build_module(config: PretrainConfig, number: int, previous: Folder | None) -> tuple[Method, Start]:
    """The module with the weights that it starts from: drawn, given, or of the stage before; and whence those come."""
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
    if previous is not None:
        _load_heads(module, previous, config.stage_name(number))
    return module, begun


def _load_heads(module: Method, previous: Folder, stage_name: str) -> None:
    for name, head in module.heads.items():
        file = f"{name}.safetensors"
        weights = safetensors.torch.load(previous.read(file)) if previous.exists(file) else {}
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in head.state_dict().items()}:
            load_weights(head, weights, previous.file(file), f"{name} head")
        else:
            say(f"{stage_name}: the {name} head has another shape than before and starts anew")


def write_heads(module: Method, folder: Folder) -> None:
    """Leave the heads for the next stage."""
    for name, head in module.heads.items():
        weights = {k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}
        folder.write(f"{name}.safetensors", safetensors.torch.save(weights))
