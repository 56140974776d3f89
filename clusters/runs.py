"""`python -m clusters runs DIR`: every run under a folder or URL, one line each. Reads, and writes nothing."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import METRICS, duration

# What stages leave, and what stands at the top of a run that has come to its end.
STAGE_MARKS = (METRICS, "finished.json", "attempt.json")
RUN_ENDS = ("encoder/config.json", "results.json")
TAIL_BYTES = 1 << 18
ACTIVE_S = 900.0
"""A run that has said nothing for so long has stopped, or steps very slowly."""


@dataclass(frozen=True)
class Run:
    """What is known of one run from its folder."""

    name: str
    stage: str
    step: str
    loss: float | None
    knn: float | None
    age_s: float | None
    size_bytes: int
    health: str


def usage() -> str:
    """What `runs` is for."""
    return """  python -m clusters runs DIR
      lists the runs under a folder or URL: stage, step, loss, kNN, age of the last record, size and health"""


def run(argv: Sequence[str]) -> None:
    """Print the runs under a folder. Raises InputError where there is no such folder, or no run in it."""
    if len(argv) != 1:
        raise InputError("runs: name one folder or URL, such as python -m clusters runs /runs")
    root = Folder(argv[0])
    if not root.exists():
        raise InputError(f"runs: {root} is not there; name the folder that holds run folders")
    found = list_runs(root, time.time())
    if not found:
        raise InputError(f"runs: {root} holds no run; name the folder that holds run folders")
    for line in table(found):
        print(line, flush=True)


def list_runs(root: Folder, now: float) -> list[Run]:
    """The runs at or under a folder, by name; `now` in seconds since 1970."""
    sizes = {name: size for name, size in root.sizes().items() if "/wandb/" not in f"/{name}"}
    stages: dict[str, list[str]] = {}
    for name in sizes:
        folder, _, file = name.rpartition("/")
        parent = folder.rpartition("/")[0].removesuffix("training").rstrip("/")
        if file in STAGE_MARKS and folder:
            named = stages.setdefault(parent, [])
            named += [folder] if folder not in named else []
        elif file == "results.json":
            stages.setdefault(folder, [])
    return [_run_at(root, name, sorted(stages[name]), sizes, now) for name in sorted(stages)]


def table(runs: Sequence[Run]) -> list[str]:
    """Runs in columns, the widest cell as wide as its column."""
    rows = [("RUN", "STAGE", "STEP", "LOSS", "KNN", "AGE", "SIZE", "HEALTH")]
    for r in runs:
        loss, knn = ("-" if value is None else f"{value:.4g}" for value in (r.loss, r.knn))
        age = "-" if r.age_s is None else duration(r.age_s)
        rows.append((r.name or ".", r.stage, r.step, loss, knn, age, _bytes(r.size_bytes), r.health))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _run_at(root: Folder, name: str, stages: list[str], sizes: dict[str, int], now: float) -> Run:
    prefix = f"{name}/" if name else ""
    inside = {path: size for path, size in sizes.items() if path.startswith(prefix)}
    records = {stage: _last_records(root / stage, sizes.get(f"{stage}/{METRICS}", 0)) for stage in stages}
    stage = max(stages, key=lambda s: (_place(s), _time(records[s])), default="")
    here = records.get(stage, [])
    done, harm = _end_of(root / stage) if f"{stage}/finished.json" in sizes else (None, [])
    ended = any(f"{prefix}{mark}" in sizes for mark in RUN_ENDS) and (done is not None or not stages)
    total = (done or {}).get("steps") or _planned_steps(root, stage, sizes)
    step = max((record["step"] for record in here), default=total if done else 0)
    age_s = max(0.0, now - _time(here)) if here else None
    return Run(
        name=name,
        stage=stage.rsplit("/", 1)[-1] or "-",
        step="-" if not stages else f"{step}/{total}" if total else str(step),
        loss=_last(here, "loss"),
        knn=_last(here, "probe/knn_auroc"),
        age_s=age_s,
        size_bytes=sum(inside.values()),
        health=", ".join([_health(here, inside, ended, age_s), *harm]),
    )


def _end_of(stage: Folder) -> tuple[dict[str, Any] | None, list[str]]:
    """What a stage ended with, and what is wrong with that; a run may tidy, or lose a bit, while it is looked at."""
    try:
        done = stage.read_json("finished.json")
        return (done, []) if isinstance(done, dict) else (None, ["finished.json is damaged"])
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError):
        return None, ["finished.json is damaged or out of reach"]


def _health(records: list[dict[str, Any]], inside: dict[str, int], ended: bool, age_s: float | None) -> str:
    """What whoever looks after the run should know, the state first."""
    active = age_s is not None and age_s < ACTIVE_S
    said = ["finished" if ended else "active" if active else "stopped"]
    alarms = [record for record in records if "alarm" in record]
    if alarms:
        said.append(f"{alarms[-1]['alarm']} at step {alarms[-1]['step']}")
    damaged = {path.split("/checkpoints/")[1].split("/")[0] for path in inside if "/checkpoints/damaged-" in path}
    if damaged:
        said.append(f"{len(damaged)} damaged checkpoint{'s' * (len(damaged) > 1)} set aside")
    return ", ".join(said)


def _last_records(folder: Folder, size: int) -> list[dict[str, Any]]:
    """The newest records of a stage's metrics; as many as hold its newest kNN, for which more and more is read."""
    tail, records = TAIL_BYTES, []
    while size:
        start = max(0, size - tail)
        lines = folder.read_range(METRICS, start, size - start).decode(errors="replace").splitlines()
        records = []
        for line in lines[1 if start else 0 :]:  # where the start was left out, the first line is torn
            with suppress(ValueError, TypeError):
                record = json.loads(line)
                records += [record] if isinstance(record, dict) and isinstance(record.get("step"), int) else []
        if start == 0 or _last(records, "probe/knn_auroc") is not None:
            break
        tail *= 4
    return records


def _last(records: list[dict[str, Any]], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if isinstance(record.get(name), (int, float))), None)


def _time(records: list[dict[str, Any]]) -> float:
    return max((record["time"] for record in records if isinstance(record.get("time"), (int, float))), default=0.0)


def _place(stage: str) -> int:
    """The place of a stage in its run, from its name (`2-micle`)."""
    first = stage.rsplit("/", 1)[-1].split("-")[0]
    return int(first) if first.isdigit() else 0


def _planned_steps(root: Folder, stage: str, sizes: dict[str, int]) -> int | None:
    """The length of an unfinished stage, where its config has it in steps."""
    if f"{stage}/config.json" not in sizes:
        return None
    with suppress(ValueError, TypeError, AttributeError):
        return (root.read_json(f"{stage}/config.json").get("identity") or {}).get("stage", {}).get("steps")
    return None


def _bytes(size: int) -> str:
    """A size as a person would say it: `812 B`, `4.1 MB`, `1.3 TB`."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.2g} {units[0]}"
