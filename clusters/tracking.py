"""What a run says while it trains: metrics.jsonl always, W&B on rank 0, one readable line an interval."""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, model_validator

from clusters import distributed, privacy
from clusters.config import Config
from clusters.gauges import Gauges, gauges_are_read
from clusters.line_writer import LineWriter
from clusters.storage import Folder
from clusters.wandb_run import Made, WandbRun

METRICS = "metrics.jsonl"
LOG = "log.txt"

_log: Folder | None = None


class TrackingConfig(Config):
    """Where metrics go besides metrics.jsonl. May change between resumes."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto",
        description="W&B mode; auto: online where there is a key (WANDB_API_KEY, `wandb login`), else offline",
    )
    privacy: Literal["normal", "strict"] = Field(
        default="normal",
        description="strict: W&B stays offline and is told nothing of argv, host, user and paths; no library makes a "
        "network call of its own; the run folder is its owner's alone",
    )
    project: str = Field(default="manyview", description="W&B project")
    every_steps: int = Field(default=10, ge=1, description="steps between records of metrics")
    every_s: float = Field(default=10.0, gt=0, description="seconds between progress lines")

    def apply_privacy(self) -> None:
        """What `strict` asks of this process, before anything is written or a library imported that might call out."""
        if self.privacy == "strict":
            privacy.go_offline()
            os.umask(0o077)

    @model_validator(mode="after")
    def _strict_is_offline(self) -> "TrackingConfig":
        if self.privacy == "strict" and self.wandb == "online":
            raise ValueError("privacy=strict sends nothing; leave wandb=auto, and `wandb sync` what you have looked at")
        return self


def say(text: str) -> None:
    """One line for the person who watches: rank 0's, printed here or by the driver that follows the log."""
    if distributed.is_main():
        _show(text)


def say_here(text: str) -> None:
    """One line for the person who watches, of this rank, whichever it is."""
    _show(text if distributed.is_main() else f"rank {distributed.rank()}: {text}")


def _show(text: str) -> None:
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
        with suppress(OSError):  # storage that is out of reach for a moment ends no run
            if not self._folder.exists(LOG) or (size := self._folder.size(LOG)) <= self._position:
                return
            new = self._folder.read_range(LOG, self._position, size - self._position)
            whole = new.rfind(b"\n") + 1
            self._position += whole
            print(new[:whole].decode(errors="replace"), end="", flush=True)  # a disk that filled up cuts letters in two


class Tracker:
    """Metrics of one run. Make one on every rank; rank 0 writes.

    `part` is what the run does: pretraining or fine-tuning. `group`: the name under which W&B shows it beside others of
    its recipe (`recipe_name`). Metrics go to metrics.jsonl always, and to W&B and Ray's own endpoint where those are.
    """

    def __init__(
        self,
        run: Folder,
        config: TrackingConfig,
        title: str,
        run_config: dict[str, Any],
        part: str = "training",
        group: str | None = None,
    ) -> None:
        self._folder = run
        self._section = ""
        self._lines = LineWriter(run, METRICS, say)
        self._wandb: WandbRun | None = None
        self._gauges: Gauges | None = None
        self._strict = strict = config.privacy == "strict"
        if strict:
            privacy.go_offline()
            privacy.close_folder(run)
            title, run_config = "private", privacy.without_places(run_config)
        if not distributed.is_main():
            return
        self._gauges = Gauges(title, part) if gauges_are_read() else None
        if config.wandb != "disabled":
            told = {"name": title, "group": group, "project": config.project, "mode": config.wandb}
            self._wandb = WandbRun(run, part, strict, {**told, "config": run_config})

    def start_section(
        self,
        folder: Folder,
        name: str,
        scores: Sequence[str] = (),
        permitted: Callable[[], bool] = lambda: True,
    ) -> None:
        """From now on metrics.jsonl stands in this folder, and names elsewhere tell of this stage.

        Of `scores` W&B's table of runs shows the largest value instead of the last one. Where records are not
        `permitted` any more (`Attempt.is_newest`), metrics.jsonl is another's.
        """
        self.flush()
        self._folder, self._section, self._lines = folder, name, LineWriter(folder, METRICS, say, permitted)
        if self._wandb is not None:
            self._wandb.define(name, scores)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record numbers at a step; a `/` in a name groups them. A value that is not finite is written as null."""
        if not distributed.is_main():
            return
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._record({"step": step, "time": round(time.time(), 3), **finite})
        if self._wandb is not None:
            self._wandb.log(self._section, step, metrics)
        if self._gauges is not None:
            self._gauges.show(self._section, step, metrics)

    def alarm(self, step: int, kind: str, reason: str, private: str = "") -> None:
        """Say that something goes wrong, record it, and have W&B tell who watches; under strict privacy without reason.

        `private`: what is said here and leaves this place by no report and no W&B (keys of cases, paths).
        """
        if not distributed.is_main():
            return
        say(f"{self._section}  step {step}  {kind}: {reason}{private}")
        self._record({"step": step, "time": round(time.time(), 3), "alarm": kind, "reason": reason})
        if self._wandb is not None:
            told = f"step {step}" if self._strict else f"step {step}: {reason}"
            self._wandb.alert(f"{self._section}: {kind}", told)

    def made(self, what: Made, made_from: Sequence[Made]) -> None:
        """At the end: what this run has made, and from what."""
        if self._wandb is not None:
            self._wandb.made(what, made_from)

    def _record(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl, written beside the training, which waits for no storage."""
        self._lines.add(json.dumps(record))

    def flush(self) -> None:
        """Return once what was recorded is in metrics.jsonl, as far as storage takes it."""
        self._lines.flush()

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl of this section holds, on rank 0; a torn last line is left out."""
        self.flush()
        return read_metrics(self._folder) if distributed.is_main() else []

    def rewind(self, step: int) -> None:
        """Cut metrics.jsonl back to the restored step: what came after it will be lived again."""
        self.flush()
        if not distributed.is_main() or not self._folder.exists(METRICS):
            return
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        self._folder.write(METRICS, "".join(kept).encode())

    def close(self) -> None:
        """Flush everything."""
        self.flush()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def recipe_name(words: str, recipe: dict[str, Any]) -> str:
    """The words and a short hash of what determines the result, whatever the data and the seed."""
    return f"{words}-{hash_of(recipe)[:8]}"


def hash_of(value: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; empty where there is none. A line that is torn or damaged is left out."""
    records = []
    for line in folder.read(METRICS).decode(errors="replace").splitlines() if folder.exists(METRICS) else ():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


class Progress:
    """One line of text an interval, the same on a terminal, in a log file and through Ray."""

    def __init__(self, title: str, total_steps: int, config: TrackingConfig, first_step: int = 0) -> None:
        self.title, self.total_steps, self.every_s = title, total_steps, config.every_s
        self._first_step, self._started = first_step, time.monotonic()
        self._printed = -math.inf  # the clock may have begun a moment ago, with this machine

    def line(self, step: int, metrics: dict[str, float]) -> None:
        """Print where the run is and when it will be done; the last step is always printed."""
        now = time.monotonic()
        if not distributed.is_main() or (now - self._printed < self.every_s and step < self.total_steps):
            return
        self._printed = now
        seconds = (now - self._started) / max(1, step - self._first_step) * (self.total_steps - step)
        shown = [f"{name} {value:.4g}" for name, value in metrics.items()]
        share = 100 * step / max(1, self.total_steps)
        where = f"{self.title}  step {step}/{self.total_steps} ({share:.0f} %)"
        say("  ".join([where, *shown, f"ETA {duration(seconds)}"]))


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
