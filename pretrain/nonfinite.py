"""Steps whose loss or gradient is not finite: never taken, known of without waiting, named when there is time."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from clusters import distributed
from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import Tracker
from pretrain.meter import DIVERGED

RECORD = "not-finite.json"
MOST_IN_A_ROW = 10
"""So many steps left out one after another are no bad batch any more, but a run that has diverged."""


@torch.no_grad()
def norm_of_gradients(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, on the device; infinite where a square overflows float32.

    After the data-parallel mean gradients are the same numbers on every rank, and so is this: where one rank's loss
    is not finite, no rank's norm is, so that all decide alike without asking each other.
    """
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms).float())


class NotFinite:
    """The steps of a stage that were not taken.

    `keys_of(step)` gives the keys of a step's global batch. With the policy `stop` the first such step ends the
    run, with `skip` it is left out; both say which keys it had, and leave them in the stage's folder.
    """

    def __init__(
        self,
        name: str,
        policy: Literal["stop", "skip"],
        folder: Folder,
        tracker: Tracker,
        keys_of: Callable[[int], list[str]],
    ) -> None:
        self._name, self._policy, self._folder, self._tracker, self._keys_of = name, policy, folder, tracker, keys_of
        self._steps: list[int] = []
        self._taken: list[Tensor] = []
        self._counts = {"in_a_row": 0, "seen": 0, "left_out": 0}

    def state(self) -> dict[str, int]:
        """For a checkpoint, after `all_taken`: what was not looked at yet was taken."""
        seen = self._counts["seen"] + len(self._taken)
        return {**self._counts, "seen": seen, **({"in_a_row": 0} if self._taken else {})}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from what `state` gave."""
        self._counts.update(state)

    def add(self, step: int, taken: Tensor) -> None:
        """Keep in mind whether a step (from 0) was taken: a 0 or 1 that stays on the device."""
        self._steps.append(step)
        self._taken.append(taken)

    def all_taken(self) -> bool:
        """Whether all steps since the last check were, which waits for the device. Any rank may call it alone."""
        return not self._taken or bool(torch.stack(self._taken).all())

    def check(self) -> None:
        """Look at the steps since the last check, which waits for the device. Every rank calls it after the same step.

        Raises InputError on all ranks where one was not taken and the policy is to stop, or too many in a row were not.
        """
        if not self._steps:
            return
        for step, taken in zip(self._steps, torch.stack(self._taken).tolist()):
            self._counts["in_a_row"] = 0 if taken else self._counts["in_a_row"] + 1
            self._counts["seen"] += 1
            self._counts["left_out"] += not taken
            if not taken:
                self._meet(step)
        self._steps, self._taken = [], []

    def end(self) -> None:
        """Raise InputError where most steps were left out: the few that were taken have ruined the weights."""
        seen, left_out = self._counts["seen"], self._counts["left_out"]
        if 2 * left_out > seen:
            raise InputError(
                f"{self._name}: {left_out} of {seen} steps were not finite and left out, so its "
                f"encoder is worth nothing and is not handed on; {DIVERGED}"
            )

    def _meet(self, step: int) -> None:
        keys, problem = self._keys_of(step), None
        if distributed.is_main():
            try:
                before = self._folder.read_json(RECORD) if self._folder.exists(RECORD) else {}
                self._folder.write_json(RECORD, {**before, str(step + 1): keys})
            except OSError as error:
                problem = error
        what = (
            f"the loss or its gradient is not finite at step {step + 1}, so that step was not taken and the weights "
            "are unharmed"
        )
        where = f"; the keys of its batch ({', '.join(keys[:3])}, …) are in {self._folder / RECORD}"
        self._tracker.alarm(step + 1, "not finite", what, where)
        distributed.stop_together(problem)  # a rank that raises ends the others, so not before rank 0 has written
        told = f"{self._name}: {what}{where}"
        if self._policy == "stop":
            raise InputError(f"{told}; {DIVERGED}, or leave such batches out: compute.on_nonfinite=skip")
        if self._counts["in_a_row"] >= MOST_IN_A_ROW:
            raise InputError(f"{told}; nor were the {MOST_IN_A_ROW - 1} before it; {DIVERGED}")
