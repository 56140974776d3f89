"""A run's curves and lineage in W&B, which must never stop a training: whatever it raises is said once."""

import atexit
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters import privacy
from clusters.storage import Folder

SYSTEM = ("time/", "samples_per_s")
"""How metrics begin that tell of the machines rather than of what is learned."""

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 60.0, 120.0
"""By default W&B waits for a server that does not answer at the end without limit."""
STALLED_S = 60.0
"""W&B's process takes records without waiting for any server: one that takes none for so long hangs on its storage."""
MOST_WAITING = 10_000


@dataclass(frozen=True)
class Made:
    """Something on disk that a run has read or made. `kind`: dataset or encoder; `fingerprint`: its own."""

    kind: str
    fingerprint: str
    location: str


class WandbRun:
    """One run of W&B, on rank 0. Its id stands in the run folder, so that a resumed run continues its curves.

    Names are in three sections, `part/stage/…` (part: pretraining or fine-tuning) and `system/stage/…`. Raises nothing.
    W&B is told of everything in order by a thread of its own, so that the training never waits for W&B's process.
    """

    def __init__(self, run: Folder, part: str, strict: bool, init: dict[str, Any]) -> None:
        """`init`: what wandb.init is told of the run (project, name, group, mode, config).

        Of `mode` it does not know auto: online where a key is found, and otherwise offline, which is said.
        """
        self._part, self._strict = part, strict
        self._run: Any = None
        self._failed = False
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(MOST_WAITING)
        self._called = 0.0  # when the call that W&B is at began; 0 between calls
        self._logs: str | None = None
        self._later(lambda: self._start(run, init))
        atexit.register(self.finish)
        self._thread = threading.Thread(target=self._tell, daemon=True, name="wandb")
        self._thread.start()

    def define(self, stage: str, scores: Sequence[str]) -> None:
        """Curves over the stage's own steps; of `scores` the table of runs shows the largest value."""
        step = f"{self._part}/{stage}/step"

        def define() -> None:
            self._run.define_metric(step, hidden=True)
            for section in (self._part, "system"):
                self._run.define_metric(f"{section}/{stage}/*", step_metric=step)
            for score in scores:
                self._run.define_metric(f"{self._part}/{stage}/{score}", step_metric=step, summary="max")

        self._later(define)

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Numbers at a step of a stage."""
        named = {f"{'system' if k.startswith(SYSTEM) else self._part}/{stage}/{k}": v for k, v in metrics.items()}
        # Never `step=`: W&B drops what a resumed run replays below its last step.
        self._later(lambda: self._run.log({f"{self._part}/{stage}/step": step, **named}))

    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches."""
        self._later(lambda: self._run.alert(title=title, text=text, level="WARN"))

    def made(self, what: Made, made_from: Sequence[Made]) -> None:
        """Lineage by fingerprint: references, of which W&B copies nothing. After the training, since it may wait."""

        def refer() -> None:
            for one in made_from:
                self._run.log_artifact(self._reference(one, []))
            self._run.log_artifact(self._reference(what, made_from))

        self._later(refer)

    def finish(self) -> None:
        """Flush, and keep no logs of W&B's own where they would name people and places."""
        self._later(lambda: self._run.finish())
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(FINISH_TIMEOUT_S + STALLED_S)
        if self._thread.is_alive():
            self._give_up()
            self._thread.join(STALLED_S)
        privacy.remove_logs(self._logs)
        self._failed = True  # nothing comes after
        atexit.unregister(self.finish)

    def _reference(self, what: Made, made_from: Sequence[Made]) -> Any:
        import wandb

        metadata: dict[str, Any] = {"fingerprint": what.fingerprint, "made_from": [_name(one) for one in made_from]}
        if not self._strict:
            metadata["location"] = what.location
        artifact = wandb.Artifact(_name(what), what.kind, metadata=metadata)
        for one in (what, *made_from):
            # A scheme that W&B has no reader for, so that it opens nothing
            artifact.add_reference(f"manyview://{one.kind}/{one.fingerprint}", name=_name(one), checksum=False)
        return artifact

    def _start(self, run: Folder, init: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # or it warns of references that it cannot open
        import wandb

        if not run.exists("wandb.json"):
            run.write_json("wandb.json", {"id": uuid.uuid4().hex[:12]})
        directory = run.path or Path.home() / ".cache" / "manyview"
        directory.mkdir(parents=True, exist_ok=True)
        for killed in (directory / "wandb").glob("*run-*") if self._strict else ():
            privacy.remove_logs(str(killed))
        mode, why_offline = init["mode"], None
        if mode == "auto":
            why_offline = "" if self._strict else _why_offline()
            mode = "online" if why_offline is None else "offline"
        self._run = wandb.init(
            **{**init, "mode": mode},
            id=run.read_json("wandb.json")["id"],
            job_type=self._part,
            resume="allow",
            dir=str(directory),
            # Console output and source code may hold names of patients: they stay here.
            settings=wandb.Settings(
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                **(privacy.STRICT_SETTINGS if self._strict else {}),
            ),
        )
        self._logs = self._run.settings.sync_dir if self._strict else None
        # Once more, so that it comes before W&B's own, which would wait for a process that stalls
        atexit.unregister(self.finish)
        atexit.register(self.finish)
        if why_offline:
            _say(
                f"W&B records offline, in {directory / 'wandb'} ({why_offline}); `wandb sync` brings it online, or "
                "from the next start on WANDB_API_KEY or `wandb login` on the machine of rank 0"
            )

    def _later(self, call: Callable[[], object]) -> None:
        """Have the thread call this after what it was told before."""
        began = self._called
        patience = STALLED_S + (INIT_TIMEOUT_S if self._run is None else 0.0)
        if not self._failed and began and time.monotonic() - began > patience:
            self._give_up()
        if self._failed:
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._give_up()

    def _tell(self) -> None:
        while not self._failed and (call := self._waiting.get()) is not None:
            self._called = time.monotonic()
            self._guard(call)
            self._called = 0.0

    def _give_up(self) -> None:
        """Leave W&B out and end its process, for which Python would wait at its own end too."""
        import wandb

        self._leave_out("its process takes nothing more; does its storage answer?")
        connection: Any = wandb.setup()._connection
        with suppress(AttributeError):  # another program's is left to it
            connection._proc._process.kill()
            with suppress(Exception):  # a later run in this process starts one of its own
                wandb.teardown()

    def _guard(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            told = " ".join(str(error).split())
            self._leave_out(f"{type(error).__name__}: {told}")

    def _leave_out(self, why: str) -> None:
        if not self._failed:
            _say(f"W&B is left out from here on ({why}); metrics.jsonl goes on")
        self._failed = True


def _why_offline() -> str | None:
    """Why W&B would not go online from here; none: it has a key, of which it asks no server."""
    import wandb

    try:
        # The environment, ~/.netrc or $NETRC, and W&B's own settings, which may ask for offline too
        if wandb.login(prompt=False, verify=False):
            return None
    except wandb.Error as error:  # a key that is none
        return " ".join(str(error).split())
    mode = os.environ.get("WANDB_MODE")
    return f"WANDB_MODE={mode}" if mode else "no key was found"


def _say(text: str) -> None:
    from clusters.tracking import say  # which knows this file

    say(text)


def _name(what: Made) -> str:
    return f"{what.kind}-{what.fingerprint[:16]}"
