"""`python -m clusters runs DIR`: every run under a folder or URL, one line each. Reads, and writes nothing."""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from clusters.attempt import ATTEMPT
from clusters.config import InputError
from clusters.lease import LEASE, LOOK_S, STALE_S, named
from clusters.run_lock import LOCK
from clusters.storage import Folder
from clusters.tracking import METRICS, duration

# What stages leave, and what stands at the top of a run that has come to its end.
STAGE_MARKS = {METRICS, "finished.json", ATTEMPT}
CONFIG, ENCODER, RESULTS = "config.json", "encoder/config.json", "results.json"
TAIL_BYTES = 1 << 18
ACTIVE_S = 900.0
"""A run that has said nothing for so long has stopped, or steps very slowly: where no lock says more."""
LOCKS = Path("/proc/locks")
"""The locks of this machine's processes, listed by a Linux kernel."""


@dataclass(frozen=True)
class Holder:
    """Who has written itself down as at work in a run folder. Not `is_certain`: it may have been killed since."""

    name: str
    is_certain: bool


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
    files_of: dict[str, set[str]] = {}
    for name in sizes:
        folder, _, file = name.rpartition("/")
        files_of.setdefault(folder, set()).add(file)
    stages: dict[str, list[str]] = {}
    for folder, files in sorted(files_of.items()):
        if not _is_ours(root, folder, files):
            continue
        if RESULTS in files:
            stages.setdefault(folder, [])
        elif folder:
            stages.setdefault(_run_of(folder), []).append(folder)
    return [_run_at(root, name, stages[name], sizes, now) for name in sorted(stages)]


def _is_ours(root: Folder, folder: str, files: set[str]) -> bool:
    """Whether Manyview wrote a stage or results there. Other programs have files of the same names."""
    if ATTEMPT in files:
        return True
    if CONFIG not in files or not files & {*STAGE_MARKS, RESULTS}:
        return False
    return "identity" in (_json(root / folder, CONFIG) or {})


def _run_of(stage: str) -> str:
    """The run of a stage: pretraining's lie in it (`ham/1-simclr`), fine-tuning's below (`ham/training/pretrained`)."""
    run = stage.rpartition("/")[0]
    above, _, last = run.rpartition("/")
    return above if last == "training" and not _place(stage) else run


def holder_of(run: Folder, patience_s: float = 0.0) -> Holder | None:
    """Who is at work in a run folder, or may be; none where nobody is. Takes no lock itself: a start would meet it.

    A lease is looked at for so long: one that lives is renewed (lease.py).
    """
    found = _json(run, LEASE)
    if found is None:
        return None if run.path is None else _holder_of_lock(run.path / LOCK, _json(run, LOCK))
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = _json(run, LEASE)
        if now is None:
            return None
        if now != found:
            return Holder(named(now), True)
    return None if patience_s >= STALE_S else Holder(named(found), False)


def _holder_of_lock(lock: Path, told: dict[str, Any] | None) -> Holder | None:
    """Whose a lock is; its file outlives a holder that was killed.

    A kernel lists what its own machine holds, by processes that are seen from here, and by the number of a device,
    which some file systems tell otherwise: what is not in its list may be held all the same.
    """
    if told is None:
        return None
    try:
        listed, found = LOCKS.read_text().splitlines(), lock.stat()
    except OSError:
        return Holder(named(told), False)
    place = f" {os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino} "
    if any(" FLOCK " in line and place in line for line in listed):
        return Holder(named(told), True)
    is_gone = told.get("host") == gethostname() and not Path(f"/proc/{told.get('process')}").exists()
    return None if is_gone or not told else Holder(named(told), False)  # who holds one has written who it is


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
    records = {stage: _last_records(root / stage, sizes.get(f"{stage}/{METRICS}", 0)) for stage in stages}
    stage = max(stages, key=lambda s: (_place(s), _time(records[s])), default="")
    here = records.get(stage, [])
    done, harm = _end_of(root / stage) if f"{stage}/finished.json" in sizes else (None, [])
    mark = ENCODER if _place(stage) else RESULTS
    ended = f"{prefix}{mark}" in sizes and (done is not None or not stages)
    total = (done or {}).get("steps") or _planned_steps(root, stage, sizes)
    step = max((record["step"] for record in here), default=total if done else 0)
    age_s = max(0.0, now - _time(here)) if here else None
    active = age_s is not None and age_s < ACTIVE_S
    if not ended and (_place(stage) or f"{prefix}{CONFIG}" in sizes):  # a trial of a search works under another's lock
        holder = holder_of(root / name)
        active = False if holder is None else holder.is_certain or active
    state = "finished" if ended else "active" if active else "stopped"
    return Run(
        name=name,
        stage=stage.rsplit("/", 1)[-1] or "-",
        step="-" if not stages else f"{step}/{total}" if total else str(step),
        loss=_last(here, "loss"),
        knn=_last(here, "probe/knn_auroc"),
        age_s=age_s,
        size_bytes=sum(size for path, size in sizes.items() if path.startswith(prefix)),
        health=", ".join([state, *_alarms(here), *_set_aside(stages, sizes), *harm]),
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


def _alarms(records: list[dict[str, Any]]) -> list[str]:
    alarms = [record for record in records if "alarm" in record]
    return [f"{alarms[-1]['alarm']} at step {alarms[-1]['step']}"] if alarms else []


def _set_aside(stages: list[str], sizes: dict[str, int]) -> list[str]:
    """How many checkpoints of these stages are damaged."""
    damaged = {
        (stage, path.removeprefix(f"{stage}/checkpoints/").split("/")[0])
        for stage in stages
        for path in sizes
        if path.startswith(f"{stage}/checkpoints/damaged-")
    }
    return [f"{len(damaged)} damaged checkpoint{'s' * (len(damaged) > 1)} set aside"] if damaged else []


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


def _json(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a small file tells; none where it is not there, nothing where it is damaged or still empty."""
    try:
        value = folder.read_json(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return {"process": "of another user"}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


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
