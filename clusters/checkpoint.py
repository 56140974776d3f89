"""Training states on disk: whole or not there, verified by hash, never pickled, written while the training goes on.

    checkpoints/step-000001200/…   see `clusters.checkpoint_files`
    saved.json                     that there are some; where they are gone, nothing is started from step 0
    attempt.json                   how often the stage was started, see `clusters.attempt`

The run folder alone decides what is resumed. Ray is never given a checkpoint.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from clusters import checkpoint_files, distributed, notice, tracking
from clusters.attempt import Attempt
from clusters.checkpoint_files import CHECKPOINTS, MANIFEST, Name
from clusters.checkpoint_policy import BEST_BY, CheckpointConfig, kept, saved
from clusters.checkpoint_writer import Writer
from clusters.config import InputError, Transient
from clusters.snapshot import Copy, Snapshot
from clusters.storage import Folder

ROUND_S = 10.0
"""How long ranks wait for rank 0 at a time, so that none takes it for dead."""
AGAIN_S = 30.0
"""After a save that failed, a notice asks for no other one for so long: a few that fail end the run."""

T = TypeVar("T")


@dataclass(frozen=True)
class Restored:
    """A verified training state and the step that it stands at."""

    step: int
    state: Any


class Checkpoints:
    """The checkpoints of one stage. Make one on every rank, as a context; rank 0 writes, in a thread.

    One write at a time: the memory of one copy of the state is taken for it, and no more. Each start takes a higher
    attempt number. A writer that finds a newer one on disk commits nothing, so that a stalled worker that wakes
    beside its replacement can do no harm.

    `before_commit`: brings to disk what must not be missing up to a checkpoint's step; called in the thread, and at the
    end of the context. `collective_timeout_s`: after so long in a collective the other ranks give rank 0 up.
    """

    def __init__(
        self,
        folder: Folder,
        config: CheckpointConfig,
        before_commit: Callable[[], None] = lambda: None,
        collective_timeout_s: float = 600.0,
    ) -> None:
        self.folder, self.config, self._before_commit = folder, config, before_commit
        self._alone_s = collective_timeout_s / 2
        self._at = folder / CHECKPOINTS
        self.attempt = Attempt(folder, self._at, _on_main)
        self._saved_at = self._started = time.monotonic()
        self._trained_s, self._step = 0.0, -1
        self._snapshot, self._writer = Snapshot(), Writer(str(self._at))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What was copied is written also where an error ends the training; a copy is whole, whatever came after."""
        if not self._writer.idle(1.0):
            tracking.say(f"{self._at}: a checkpoint is still being written; the end waits for it")
            self._writer.idle(self.config.timeout_s)
        self._before_commit()

    def due(self, step: int, scores: dict[str, float] | None = None) -> bool:
        """Whether rank 0 should save after this step, of which the probe may have given scores.

        While one is being written, one that is due by time is put off until it has ended, and one that is due by
        its step or score, or asked for by a `notice`, waits. Where storage stalls, so that this would take long, it
        is left out.
        """
        by_step = self.config.every_steps is not None and step % self.config.every_steps == 0
        failed = self._writer.last_failure() is not None and time.monotonic() - self._saved_at < AGAIN_S
        if by_step or (notice.is_given() and not failed) or (self.config.keep_best and BEST_BY in (scores or {})):
            return self._writer.bear(self._alone_s)
        return self._writer.idle() and time.monotonic() - self._saved_at >= self.config.every_s

    def save(self, step: int, state: Any, scores: dict[str, float] | None = None) -> None:
        """Copy a nested dict or list of tensors, numbers, strings and None; rank 0 then writes it, others return.

        Waits only where one is still being written, and no longer than the other ranks do. What goes wrong with the
        writing is told by `problem` and `wait`.
        """
        if not distributed.is_main() or self._writer.problem:
            return
        patience_s = min(self.config.timeout_s, self._alone_s)
        if not self._writer.idle(patience_s):
            return self._writer.give_up(patience_s)
        if step == self._step and not self._writer.last_failure():
            return
        copy = self._snapshot.take(state)
        self._saved_at, self._step = time.monotonic(), step
        about = {"trained_s": self._trained_s + self._saved_at - self._started, "scores": scores or {}}
        asked = notice.is_given()  # before the copy's writing ends: one that is given meanwhile wants a later step
        self._writer.start(step, lambda: self._write(Name(step, self.attempt.number), copy, about, asked))

    def problem(self) -> Exception | None:
        """What must end the run, as far as this rank knows: for `distributed.stop_together`."""
        return self._writer.problem

    def wait(self) -> None:
        """Return once what was saved is on disk. Every rank calls it.

        Raises InputError on all ranks where that has failed, or takes longer than `timeout_s`.
        """
        until = time.monotonic() + self.config.timeout_s
        while distributed.broadcast_object(not self._writer.idle(min(ROUND_S, self._alone_s))):
            if distributed.broadcast_object(time.monotonic() > until):
                self._writer.give_up(self.config.timeout_s)
                break
        distributed.stop_together(self._writer.problem or self._writer.last_failure())

    def restore(self) -> Restored | None:
        """The newest state whose hashes hold, the same on every rank; None where nothing was saved.

        A damaged checkpoint is set aside under another name and said; the one before it is used.
        Raises InputError where checkpoints exist and none is intact, never a silent start from step 0; Transient, on
        all ranks, where one of them reads something else than rank 0, or nothing.
        """
        found = _on_main(self._find_intact)
        if found is None:
            return None
        name, manifest = found
        state, problem = None, None
        try:
            state = checkpoint_files.read(self._at / str(name), manifest)
        except (OSError, MemoryError) as error:
            told = f"{getattr(error, 'strerror', None) or error or type(error).__name__}"
            problem = Transient(
                f"{self._at / str(name)}: whole where rank 0 looked, but rank {distributed.rank()} "
                f"could not read it ({told}); see to that machine and its way to the storage, and run the command again"
            )
        distributed.stop_together(problem)
        self._step, self._trained_s = name.step, manifest.get("trained_s", 0.0)
        return Restored(name.step, state)

    def _write(self, name: Name, copy: Copy, about: dict[str, Any], asked: bool) -> None:
        def permit() -> None:
            self._before_commit()
            self.attempt.check()

        self.attempt.check()
        checkpoint_files.write(self._at / str(name), name, copy, about, permit)
        with suppress(OSError):  # the next save does it
            checkpoint_files.note_that_saved(self.folder)
        if asked:
            notice.heeded()
        try:
            self.attempt.check()  # it may have stalled since the commit, and what is old for it be all that another has
            checkpoints = saved(self._at)
            stay = kept(checkpoints, self.config)
            for old in checkpoints:
                if old.name not in stay:
                    checkpoint_files.remove(self._at / str(old.name))
        except OSError as error:
            tracking.say(f"{self._at}: old checkpoints could not be removed ({error.strerror or error})")

    def _find_intact(self) -> tuple[Name, dict[str, Any]] | None:
        """The newest whole checkpoint and its MANIFEST; damaged ones are set aside, what was passed over is said."""
        passed_over = []
        for name in reversed(checkpoint_files.names(self._at)):
            problem = checkpoint_files.verify(self._at / str(name), name.step)
            if problem is None:
                unfinished = self._tidy(name)
                passed_over += [f"{unfinished}, which has no {MANIFEST}"] if unfinished else []
                if passed_over:
                    tracking.say(f"{self._at}: going on from {name}, passing over {'; '.join(passed_over)}")
                return name, (self._at / str(name)).read_json(MANIFEST)
            aside = f"damaged-{name}-attempt-{self.attempt.number}"
            while self._at.exists(aside):
                aside += "-again"
            self._at.move(str(name), aside)
            tracking.say(f"checkpoint {name} is damaged ({problem}); set aside as {aside}")
            passed_over.append(f"{name}, which is damaged")
        self._refuse_damaged()
        if problem := checkpoint_files.without_commit(self._at) or checkpoint_files.gone(self.folder):
            raise InputError(problem)
        unfinished = self._tidy(None)
        if unfinished:
            tracking.say(
                f"{self._at / str(unfinished)} has no {MANIFEST}, as if its saving had been cut off; "
                "there is no other checkpoint, so the stage starts from step 0"
            )
        return None

    def _tidy(self, newest: Name | None) -> Name | None:
        """Remove what was never finished, but for the last where none that is whole is newer; returns that.

        It may be a whole one that has lost its MANIFEST, at which a person would want to look. Where none is whole,
        nothing is removed.
        """
        unfinished = checkpoint_files.names(self._at, committed=False)
        last = unfinished[-1] if unfinished and (newest is None or unfinished[-1] > newest) else None
        for old in unfinished:
            if old != last and newest is not None:
                (self._at / str(old)).remove()
        return last

    def _refuse_damaged(self) -> None:
        damaged = [name for name in self._at.names() if name.startswith("damaged-")]
        if damaged:
            raise InputError(
                f"{self.folder.location}: none of its checkpoints is intact ({len(damaged)} damaged); remove this "
                "folder to start the stage again, or restore it from a backup"
            )


def _on_main(find: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank. What it meets is raised on all of them, or they would wait for it."""
    found, problem = None, None
    try:
        found = find() if distributed.is_main() else None
    except Exception as error:
        problem = error
    distributed.stop_together(problem)
    return distributed.broadcast_object(found)
