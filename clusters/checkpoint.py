"""Training states on disk: whole or not there, verified by hash, never pickled, written while the training goes on.

    checkpoints/step-000001200/…   see `clusters.checkpoint_files`
    attempt.json                   how often the stage was started

The run folder alone decides what is resumed. Ray is never given a checkpoint.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from clusters import checkpoint_files, distributed, notice, tracking
from clusters.checkpoint_files import MANIFEST, Name
from clusters.checkpoint_policy import BEST_BY, CheckpointConfig, kept, saved
from clusters.checkpoint_writer import Writer
from clusters.config import InputError
from clusters.snapshot import Copy, Snapshot
from clusters.storage import Folder

ROUND_S = 10.0
"""How long ranks wait for rank 0 at a time, so that none takes it for dead."""


@dataclass(frozen=True)
class Restored:
    """A verified training state and the step that it stands at."""

    step: int
    state: Any


class Superseded(InputError):
    """A newer start of the same run has taken over; this one must not write any more."""


class Checkpoints:
    """The checkpoints of one stage. Make one on every rank, as a context; rank 0 writes, in a thread.

    One write at a time: the memory of one copy of the state is taken for it, and no more. Each start takes a higher
    attempt number. A writer that finds a newer one on disk commits nothing, so that a stalled worker that wakes
    beside its replacement can do no harm.
    """

    def __init__(self, folder: Folder, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config
        self._at = folder / "checkpoints"
        self._attempt = distributed.broadcast_object(self._begin_attempt() if distributed.is_main() else None)
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

    def due(self, step: int, scores: dict[str, float] | None = None) -> bool:
        """Whether rank 0 should save after this step, of which the probe may have given scores.

        While one is being written, one that is due by time is put off until it has ended, and one that is due by
        its step or score, or asked for by a `notice`, waits. Where storage stalls, so that this would take long, it
        is left out.
        """
        by_step = self.config.every_steps is not None and step % self.config.every_steps == 0
        if by_step or notice.is_given() or (self.config.keep_best and BEST_BY in (scores or {})):
            return self._writer.bear()
        return self._writer.idle() and time.monotonic() - self._saved_at >= self.config.every_s

    def save(self, step: int, state: Any, scores: dict[str, float] | None = None) -> None:
        """Copy a nested dict or list of tensors, numbers, strings and None; rank 0 then writes it, others return.

        Waits only where one is still being written. What goes wrong with the writing is told by `problem` and `wait`.
        """
        if not distributed.is_main() or self._writer.problem:
            return
        if not self._writer.idle(self.config.timeout_s):
            return self._writer.give_up(self.config.timeout_s)
        if step == self._step and not self._writer.last_failure():
            return
        copy = self._snapshot.take(state)
        self._saved_at, self._step = time.monotonic(), step
        about = {"trained_s": self._trained_s + self._saved_at - self._started, "scores": scores or {}}
        asked = notice.is_given()  # before the copy's writing ends: one that is given meanwhile wants a later step
        self._writer.start(step, lambda: self._write(Name(step, self._attempt), copy, about, asked))

    def problem(self) -> Exception | None:
        """What must end the run, as far as this rank knows: for `distributed.stop_together`."""
        return self._writer.problem

    def wait(self) -> None:
        """Return once what was saved is on disk. Every rank calls it.

        Raises InputError on all ranks where that has failed, or takes longer than `timeout_s`.
        """
        until = time.monotonic() + self.config.timeout_s
        while distributed.broadcast_object(not self._writer.idle(ROUND_S)):
            if distributed.broadcast_object(time.monotonic() > until):
                self._writer.give_up(self.config.timeout_s)
                break
        distributed.stop_together(self._writer.problem or self._writer.last_failure())

    def restore(self) -> Restored | None:
        """The newest state whose hashes hold, the same on every rank; None where nothing was saved.

        A damaged checkpoint is set aside under another name and said; the one before it is used.
        Raises InputError where checkpoints exist and none is intact: never a silent start from step 0.
        """
        name, problem = None, None
        try:
            name = self._find_intact() if distributed.is_main() else None
        except (OSError, InputError) as error:
            problem = error
        distributed.stop_together(problem)
        name = distributed.broadcast_object(name)
        if name is None:
            return None
        folder = self._at / str(name)
        self._step, self._trained_s = name.step, folder.read_json(MANIFEST).get("trained_s", 0.0)
        return Restored(name.step, checkpoint_files.read(folder))

    def _write(self, name: Name, copy: Copy, about: dict[str, Any], asked: bool) -> None:
        self._check_attempt()
        checkpoint_files.write(self._at / str(name), name, copy, about, self._check_attempt)
        if asked:
            notice.heeded()
        try:
            checkpoints = saved(self._at)
            stay = kept(checkpoints, self.config)
            for old in checkpoints:
                if old.name not in stay:
                    checkpoint_files.remove(self._at / str(old.name))
        except OSError as error:
            tracking.say(f"{self._at}: old checkpoints could not be removed ({error.strerror or error})")

    def _find_intact(self) -> Name | None:
        """The newest whole checkpoint. Damaged ones before it are set aside, and what was passed over is said."""
        passed_over = []
        for name in reversed(checkpoint_files.names(self._at)):
            problem = checkpoint_files.verify(self._at / str(name), name.step)
            if problem is None:
                unfinished = self._tidy(name)
                passed_over += [f"{unfinished}, which has no {MANIFEST}"] if unfinished else []
                if passed_over:
                    tracking.say(f"{self._at}: going on from {name}, passing over {'; '.join(passed_over)}")
                return name
            aside = f"damaged-{name}-attempt-{self._attempt}"
            self._at.move(str(name), aside)
            tracking.say(f"checkpoint {name} is damaged ({problem}); set aside as {aside}")
            passed_over.append(f"{name}, which is damaged")
        self._refuse_damaged()
        unfinished = self._tidy(None)
        if unfinished:
            tracking.say(
                f"{self._at / str(unfinished)} has no {MANIFEST}, as if its saving had been cut off; "
                "there is no other checkpoint, so the stage starts from step 0"
            )
        return None

    def _tidy(self, newest: Name | None) -> Name | None:
        """Remove what was never finished, but for the last where none that is whole is newer; returns that.

        It may be a whole one that has lost its MANIFEST, at which a person would want to look.
        """
        unfinished = checkpoint_files.names(self._at, committed=False)
        last = unfinished[-1] if unfinished and (newest is None or unfinished[-1] > newest) else None
        for old in unfinished:
            if old != last:
                (self._at / str(old)).remove()
        return last

    def _refuse_damaged(self) -> None:
        damaged = [name for name in self._at.names() if name.startswith("damaged-")]
        if damaged:
            raise InputError(
                f"{self.folder.location}: none of its checkpoints is intact ({len(damaged)} damaged); remove this "
                "folder to start the stage again, or restore it from a backup"
            )

    def _begin_attempt(self) -> int:
        attempt = 1 + (self.folder.read_json("attempt.json")["attempt"] if self.folder.exists("attempt.json") else 0)
        self.folder.write_json("attempt.json", {"attempt": attempt})
        return attempt

    def _check_attempt(self) -> None:
        newest = self.folder.read_json("attempt.json")["attempt"]
        if newest != self._attempt:
            raise Superseded(
                f"{self.folder.location}: attempt {newest} of this run has taken over from attempt {self._attempt}; "
                "leave the run to it"
            )
