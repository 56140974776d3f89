"""Pretraining that notes what it is fed and whose workers are taken away."""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from clusters import distributed, notice
from pretrain.config import PretrainConfig
from pretrain.methods.method import Output
from pretrain.run import train
from pretrain.training import Training

LOST_BEFORE, ANNOUNCED_BEFORE = 6, 7
"""Under a real Ray the first two workers wait at a step to lose one of them, the one that is left to be told of a
second."""


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 0, the global batch as (sample, hash of its views), its loss, by whom."""

    step: int
    fed: list[tuple[int, str]]
    loss: float
    num_workers: int
    when: float = field(default_factory=time.time, compare=False)


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
    return Taken(step, sorted(fed), float(loss), distributed.world_size())


def recorded(values: dict[str, Any]) -> list[Taken]:
    """Run a recipe as a worker would, until its end or until `values["gone_before"]`, a step; what was taken.

    Nothing is learned at `values["left_out"]`, a step.
    """
    gone_before, left_out, steps, step_of = values.get("gone_before"), values.get("left_out"), [], Training.step

    def step(training: Training, step: int, views_VBCHW: torch.Tensor, groups_VBG: torch.Tensor) -> Output:
        if step == gone_before:
            raise Gone
        before = copy.deepcopy(training.state()) if step == left_out else None
        output = step_of(training, step, views_VBCHW, groups_VBG)
        if before is not None:
            training.load_state(before)
        steps.append(taken(step, views_VBCHW, groups_VBG, output))
        return output

    Training.step = step  # type: ignore[method-assign]
    try:
        train(PretrainConfig.model_validate({k: v for k, v in values.items() if k not in ("gone_before", "left_out")}))
    except Gone:
        pass
    finally:
        Training.step = step_of  # type: ignore[method-assign]
    return steps


def train_while_nodes_change(config: PretrainConfig) -> dict[str, Any]:
    """What elastic workers of a real Ray run: `train` that notes its steps and waits for what is to happen."""
    run, workers, step_of = Path(config.run), distributed.world_size(), Training.step
    alone_before = distributed.broadcast_object(any(note.num_workers == 1 for note in notes(run)))

    def step(training: Training, step: int, views_VBCHW: torch.Tensor, groups_VBG: torch.Tensor) -> Output:
        if workers == 2 and step == LOST_BEFORE and not alone_before:
            _wait_for(lambda: False)
        if workers == 1 and step == ANNOUNCED_BEFORE - 1:
            _wait_for(notice.is_given)
        if workers == 1 and step == ANNOUNCED_BEFORE:
            _wait_for(lambda: False)
        output = step_of(training, step, views_VBCHW, groups_VBG)
        note = taken(step, views_VBCHW, groups_VBG, output)
        if distributed.is_main():
            with (run / "taken.jsonl").open("a") as file:
                file.write(json.dumps(asdict(note)) + "\n")
        return output

    Training.step = step  # type: ignore[method-assign]
    return train(config)


def train_while_a_node_is_drained(config: PretrainConfig) -> dict[str, Any]:
    """`train` that notes its steps; two workers wait at one until rank 0 is asked to save, and at the next to end."""
    run, workers, step_of = Path(config.run), distributed.world_size(), Training.step

    def step(training: Training, step: int, views_VBCHW: torch.Tensor, groups_VBG: torch.Tensor) -> Output:
        if workers == 2 and step == LOST_BEFORE:
            _wait_for(lambda: notice.is_given() or not distributed.is_main())
        if workers == 2 and step == LOST_BEFORE + 1:
            _wait_for(lambda: False)
        output = step_of(training, step, views_VBCHW, groups_VBG)
        noted = taken(step, views_VBCHW, groups_VBG, output)
        if distributed.is_main():
            with (run / "taken.jsonl").open("a") as file:
                file.write(json.dumps(asdict(noted)) + "\n")
        return output

    Training.step = step  # type: ignore[method-assign]
    return train(config)


def notes(run: Path) -> list[Taken]:
    """The steps that were taken under Ray, in the order in which they were."""
    path = run / "taken.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Taken(**{**values, "fed": [(sample, views) for sample, views in values["fed"]]}) for values in found]


def _wait_for(condition: Callable[[], bool]) -> None:
    """Until then, or until Ray ends this process."""
    while not condition():
        time.sleep(0.1)
