"""Pretraining that notes what it is fed and whose workers are taken away."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from clusters import distributed
from pretrain.config import PretrainConfig
from pretrain.methods.method import Output
from pretrain.run import train
from pretrain.training import Training


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 0, the global batch as (sample, hash of its views), and its loss."""

    step: int
    fed: list[tuple[int, str]]
    loss: float


class Gone(Exception):
    """The workers were taken away."""


def taken(step: int, views_VBCHW: torch.Tensor, groups_VBG: torch.Tensor, output: Output) -> Taken:
    """What this rank and the others made of a step; every rank calls it."""
    mine = [
        (int(sample), hashlib.sha256(views_VBCHW[:, place].contiguous().numpy().tobytes()).hexdigest())
        for place, sample in enumerate(groups_VBG[0, :, 0])
    ]
    fed = [pair for share in distributed.gather_objects(mine) for pair in share]
    loss = distributed.sum_over_ranks(output.loss) / distributed.world_size()
    return Taken(step, sorted(fed), float(loss))


def recorded(values: dict[str, Any]) -> list[Taken]:
    """Run a recipe as a worker would, until its end or until `values["gone_before"]`, a step; what was taken."""
    gone_before, steps, step_of = values.get("gone_before"), [], Training.step

    def step(training: Training, step: int, views_VBCHW: torch.Tensor, groups_VBG: torch.Tensor) -> Output:
        if step == gone_before:
            raise Gone
        output = step_of(training, step, views_VBCHW, groups_VBG)
        steps.append(taken(step, views_VBCHW, groups_VBG, output))
        return output

    Training.step = step  # type: ignore[method-assign]
    try:
        train(PretrainConfig.model_validate({k: v for k, v in values.items() if k != "gone_before"}))
    except Gone:
        pass
    finally:
        Training.step = step_of  # type: ignore[method-assign]
    return steps
