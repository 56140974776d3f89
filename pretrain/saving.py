"""The checkpoints of a stage: which steps leave one, what is in it, and what becomes of a rank 0 that cannot save."""

from clusters import distributed, termination
from clusters.checkpoint import Checkpoints
from clusters.config import InputError
from clusters.tracking import say
from pretrain.nonfinite import NotFinite
from pretrain.training import Training
from pretrain.watch import broken_weights


class Saving:
    """Saves and restores a training together with the count of its steps that were left out. Every rank has one.

    Rank 0 alone saves, when its clock says so, and its training goes on while a thread writes. What keeps it from
    saving it keeps to itself until all ranks `look` or `wait`: if it left at once, the others would wait for it.
    To save at once and be sure of it: `save`, then `wait`, each on every rank after the same step.
    """

    def __init__(self, name: str, training: Training, not_finite: NotFinite, checkpoints: Checkpoints) -> None:
        self._name, self._training, self._not_finite = name, training, not_finite
        self._checkpoints = checkpoints
        self._problem: InputError | None = None
        self._notices: dict[int, str] = {}

    def restore(self) -> int:
        """Go on from the newest intact checkpoint; returns the step that it stands at, 0 where there is none."""
        restored = self._checkpoints.restore()
        if restored is None:
            return 0
        self._training.load_state(restored.state)
        self._not_finite.load_state(restored.state.get("not_finite", {}))
        say(f"{self._name}: resumed at step {restored.step} of {self._training.total_steps}")
        return restored.step

    def due(self, done: int, scores: dict[str, float] | None = None) -> bool:
        """Whether this rank is to `save` after so many steps: at the end, and by rank 0's clock or the probe's scores.

        Where a step was left out, not before all ranks have named it together.
        """
        if done == self._training.total_steps:
            return True
        due = distributed.is_main() and self._problem is None and self._checkpoints.due(done, scores)
        return due and self._not_finite.all_taken()

    def save(self, done: int, scores: dict[str, float] | None = None) -> None:
        """Leave a checkpoint, on rank 0. Weights that are not finite replace no good one."""
        if not distributed.is_main():
            return
        self._problem = broken_weights(self._training.module, self._name, done)
        if self._problem is None:
            state = {**self._training.state(), "not_finite": self._not_finite.state()}
            self._checkpoints.save(done, state, scores)

    def look(self) -> bool:
        """Whether a rank was told to leave, so that all are to `leave`. Every rank calls it after the same step.

        Raises InputError on all ranks where rank 0 could not save.
        """
        told = distributed.gather_objects((self._problem or self._checkpoints.problem(), termination.notice()))
        for problem, _ in told:
            if problem is not None:
                raise problem
        self._notices = {rank: notice for rank, (_, notice) in enumerate(told) if notice is not None}
        return bool(self._notices)

    def wait(self) -> None:
        """Return once what was saved is on disk, or raise InputError on all ranks. Every rank calls it."""
        self.look()
        self._checkpoints.wait()

    def leave(self, done: int) -> None:
        """Wait until so many steps are saved and say on whose account the run leaves. Raises Stopped on all ranks."""
        whom = ", ".join(f"rank {rank}: {notice}" for rank, notice in self._notices.items())
        self.wait()
        say(f"{self._name}: told to leave ({whom}); saved at step {done} of {self._training.total_steps}")
        raise termination.Stopped
