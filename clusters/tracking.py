"""What a run says while it trains: metrics.jsonl always, W&B on rank 0, one readable line an interval."""

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from clusters import distributed, privacy
from clusters.config import Config
from clusters.storage import Folder

METRICS = "metrics.jsonl"
LOG = "log.txt"

_log: Folder | None = None


class TrackingConfig(Config):
    """Where metrics go besides metrics.jsonl. May change between resumes."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="W&B mode; auto: online where WANDB_API_KEY is set, else offline"
    )
    privacy: Literal["normal", "strict"] = Field(
        default="normal",
        description="strict: W&B stays offline and is told nothing of argv, host, user and paths; no library makes a "
        "network call of its own; the run folder is its owner's alone",
    )
    project: str = Field(default="manyview", description="W&B project")
    every_steps: int = Field(default=10, ge=1, description="steps between records of metrics")
    every_s: float = Field(default=10.0, gt=0, description="seconds between progress lines")

    @model_validator(mode="after")
    def _strict_is_offline(self) -> "TrackingConfig":
        if self.privacy == "strict" and self.wandb == "online":
            raise ValueError("privacy=strict sends nothing; leave wandb=auto, and `wandb sync` what you have looked at")
        return self


def say(text: str) -> None:
    """One line for the person who watches: rank 0's, printed here or by the driver that follows the log."""
    if not distributed.is_main():
        return
    if _log is not None:
        with suppress(OSError):  # a log on a full disk ends no training
            _log.append(LOG, text)
            return
    print(text, flush=True)


def say_into(folder: Folder | None) -> None:
    """From now on lines go into log.txt in this folder: a Ray worker's own output is full of Ray's noise."""
    global _log
    _log = folder


class LogFollower:
    """Print what workers say into log.txt from now on, until closed."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._stop = folder, threading.Event()
        self._position = folder.size(LOG) if folder.exists(LOG) else 0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Print the rest and stop."""
        self._stop.set()
        self._thread.join()
        self._print_new()

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            self._print_new()

    def _print_new(self) -> None:
        if not self._folder.exists(LOG) or (size := self._folder.size(LOG)) <= self._position:
            return
        new = self._folder.read_range(LOG, self._position, size - self._position)
        whole = new.rfind(b"\n") + 1
        self._position += whole
        print(new[:whole].decode(), end="", flush=True)


class Tracker:
    """Metrics of one run. Make one on every rank; rank 0 writes.

    The W&B run id stands in the run folder, so that a resumed run continues its curves. W&B must never
    stop a training: whatever it raises is said once and it is left alone.
    """

    def __init__(self, run: Folder, config: TrackingConfig, title: str, run_config: dict[str, Any]) -> None:
        self._folder = run
        self._section = ""
        self._unwritten: list[str] = []
        self._wandb: Any = None
        self._strict = config.privacy == "strict"
        if self._strict:
            privacy.go_offline()
            privacy.close_folder(run)
        if distributed.is_main() and config.wandb != "disabled":
            self._guard(lambda: self._start_wandb(run, config, title, run_config))

    def start_section(self, folder: Folder, name: str, scores: Sequence[str] = ()) -> None:
        """From now on metrics.jsonl stands in this folder and W&B names begin with `name/`.

        Of `scores` W&B's table of runs shows the largest value instead of the last one.
        """
        self._folder, self._section = folder, f"{name}/"
        if self._wandb is not None:
            self._guard(lambda: self._define(name, scores))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record numbers at a step; a `/` in a name groups them. A value that is not finite is written as null."""
        if not distributed.is_main():
            return
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._record({"step": step, "time": round(time.time(), 3), **finite})
        if self._wandb is not None:
            named = {f"{self._section}{k}": v for k, v in metrics.items()}
            # Never `step=`: W&B drops what a resumed run replays below its last step.
            self._guard(lambda: self._wandb.log({f"{self._section}step": step, **named}))

    def alarm(self, step: int, kind: str, reason: str) -> None:
        """Say that something goes wrong, record it, and have W&B tell who watches."""
        if not distributed.is_main():
            return
        section = self._section.rstrip("/")
        say(f"{section}  step {step}  {kind}: {reason}")
        self._record({"step": step, "time": round(time.time(), 3), "alarm": kind, "reason": reason})
        if self._wandb is not None:
            self._guard(
                lambda: self._wandb.alert(title=f"{section}: {kind}", text=f"step {step}: {reason}", level="WARN")
            )

    def _record(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl; what a full disk refuses goes with a later one, and training goes on."""
        self._unwritten.append(json.dumps(record))
        torn = len(self._unwritten) > 1  # perhaps; readers leave out a line that is
        try:
            self._folder.append(METRICS, "\n" * torn + "\n".join(self._unwritten))
            self._unwritten = []
        except OSError as error:
            if not torn:
                say(f"{self._folder.file(METRICS)} could not be written ({error.strerror or error}); it is tried again")

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl of this section holds, on rank 0; a torn last line is left out."""
        return read_metrics(self._folder) if distributed.is_main() else []

    def rewind(self, step: int) -> None:
        """Cut metrics.jsonl back to the restored step: what came after it will be lived again."""
        if not distributed.is_main() or not self._folder.exists(METRICS):
            return
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        self._folder.write(METRICS, "".join(kept).encode())

    def close(self) -> None:
        """Flush W&B."""
        if self._wandb is not None:
            kept = self._wandb.settings.sync_dir if self._strict else None
            self._guard(lambda: self._wandb.finish())
            privacy.remove_logs(kept)
            self._wandb = None

    def _start_wandb(self, run: Folder, config: TrackingConfig, title: str, run_config: dict[str, Any]) -> None:
        import wandb

        if not run.exists("wandb.json"):
            run.write_json("wandb.json", {"id": uuid.uuid4().hex[:12]})
        mode = config.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") and not self._strict else "offline"
        directory = run.path or Path.home() / ".cache" / "manyview"
        directory.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb.init(
            project=config.project,
            id=run.read_json("wandb.json")["id"],
            name="private" if self._strict else title,
            resume="allow",
            mode=mode,
            dir=str(directory),
            config=privacy.without_places(run_config) if self._strict else run_config,
            # Console output and source code may hold names of patients: they stay here.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                **(privacy.STRICT_SETTINGS if self._strict else {}),
            ),
        )

    def _define(self, name: str, scores: Sequence[str]) -> None:
        """Curves over the section's own steps."""
        self._wandb.define_metric(f"{name}/step", hidden=True)
        self._wandb.define_metric(f"{name}/*", step_metric=f"{name}/step")
        for score in scores:
            self._wandb.define_metric(f"{name}/{score}", step_metric=f"{name}/step", summary="max")

    def _guard(self, call: Any) -> None:
        try:
            call()
        except Exception as error:
            print(
                f"W&B is left out from here on ({type(error).__name__}: {error}); metrics.jsonl goes on",
                flush=True,
            )
            self._wandb = None


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; empty where there is none. A killed writer's torn last line is left out."""
    records = []
    for line in folder.read(METRICS).decode().splitlines() if folder.exists(METRICS) else ():
        with suppress(ValueError, TypeError):
            record = json.loads(line)
            if "step" in record:
                records.append(record)
    return records


class Progress:
    """One line of text an interval, the same on a terminal, in a log file and through Ray."""

    def __init__(self, title: str, total_steps: int, config: TrackingConfig, first_step: int = 0) -> None:
        self.title, self.total_steps, self.every_s = title, total_steps, config.every_s
        self._first_step, self._started = first_step, time.monotonic()
        self._printed = 0.0

    def line(self, step: int, metrics: dict[str, float]) -> None:
        """Print where the run is and when it will be done; the last step is always printed."""
        now = time.monotonic()
        if not distributed.is_main() or (now - self._printed < self.every_s and step < self.total_steps):
            return
        self._printed = now
        seconds = (now - self._started) / max(1, step - self._first_step) * (self.total_steps - step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        share = 100 * step / max(1, self.total_steps)
        say(f"{self.title}  step {step}/{self.total_steps} ({share:.0f} %)  {shown}  ETA {duration(seconds)}")


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
