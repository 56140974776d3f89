"""What lies in a folder in which a command is to begin: none writes over what is not its own."""

import re
from collections.abc import Collection
from pathlib import Path

from clusters.config import InputError
from clusters.storage import Folder

PASSING = ("log.txt", "metrics.jsonl", "wandb", "wandb.json", "lost+found")
"""What a run that was killed at its start leaves before it says whose the folder is; and what a new disk has."""
BESIDE = (".log", ".out", ".err", ".yaml", ".yml")
"""What people have there before a start: the recipe, and what a shell or SLURM writes down of the run."""
MARKS = {
    "manifest.json": "a dataset",
    "predict.json": "predictions of python -m finetune predict",
    "results.json": "results of python -m finetune",
    "sweep.json": "results of python -m finetune search or efficiency",
    "search.json": "results of python -m finetune search",
    "efficiency.json": "results of python -m finetune efficiency",
    "model.json": "a model of python -m finetune",
}
STAGE = re.compile(r"[1-9]\d*-[a-z0-9_]+")


def refuse_occupied(folder: Folder, key: str, along: Collection[str] = ()) -> None:
    """Raises InputError, which says what lies there, where a folder that is to be begun in holds anything else.

    `key`: the setting that names it. Nothing is made of names `along`, hidden ones and empty folders: a run that was
    killed at once leaves those too, and is to go on.
    """
    names = [name for name in folder.names() if name not in along and _counts(folder, name)]
    if names:
        what = kind_of(folder, names) or f"other things, {names[0]} among them"
        raise InputError(f"{folder}: holds {what}; give another {key}=, a new or an empty folder")


def kind_of(folder: Folder, names: Collection[str]) -> str | None:
    """What kind of folder has these names, and which of them tells it; None where none of Manyview's has."""
    for mark, kind in MARKS.items():
        if mark in names:
            return f"{kind} ({mark})"
    if "config.json" in names and (kind := _told_by_config(folder)):
        return kind
    if "attempt.json" in names:
        return "a training of a run (attempt.json)"
    stages = [name for name in names if STAGE.fullmatch(name) and _is_stage(folder / name)]
    return f"a pretraining run ({stages[0]})" if stages else None


def is_stage_config(config: object) -> bool:
    """Whether a config.json is that of a stage of pretraining."""
    identity = config.get("identity") if isinstance(config, dict) else None
    return isinstance(identity, dict) and "stage" in identity


def _told_by_config(folder: Folder) -> str | None:
    try:
        config = folder.read_json("config.json")
    except (ValueError, IsADirectoryError):
        config = None
    if is_stage_config(config):
        return "a stage of a pretraining run (config.json)"
    if isinstance(config, dict) and "manyview" in config:
        return "an encoder (config.json)"
    if isinstance(config, dict) and isinstance(config.get("identity"), dict):
        return "results of python -m finetune that are not finished (config.json)"
    return None


def _is_stage(folder: Folder) -> bool:
    return any(folder.exists(name) for name in ("config.json", "attempt.json", "finished.json"))


def _counts(folder: Folder, name: str) -> bool:
    if name.startswith(".") or name in PASSING or name.endswith(BESIDE):
        return False
    return folder.path is None or _holds_files(folder.path / name)


def _holds_files(path: Path) -> bool:
    """Whether a path is a file, or has any at any depth: a write that was killed leaves folders, and hidden files."""
    if not path.is_dir():
        return True
    return any(_holds_files(inner) for inner in path.iterdir() if not inner.name.startswith("."))
