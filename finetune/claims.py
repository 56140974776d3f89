"""Whose results a folder holds: what they are made with is written before anything is computed."""

from typing import Any

from clusters.config import InputError, differences
from clusters.occupied import is_stage_config, refuse_occupied
from clusters.storage import Folder
from finetune.made_with import versions

CONFIG, SWEEP = "config.json", "sweep.json"
"""What one model of a folder was made with, and what all models of one that holds many have in common."""
TRAINED, SWEPT = ("results.json",), ("points", "efficiency.json", "search.json")
"""What they leave beside that."""
FEATURES = "features"
TRIED = (FEATURES, "training", "trial.json")
"""What a trial of a search leaves where its model is then tested; a feature folder may be any run's."""


def is_begun(out: Folder, identity: dict[str, Any]) -> bool:
    """Whether a model was begun here with this identity; False in a new folder.

    Raises InputError for another's, and for a folder of anything else.
    """
    if not out.exists(CONFIG):
        _refuse_unknown(out, CONFIG, TRAINED)
        refuse_occupied(out, "out", TRIED)
        return False
    config = out.read_json(CONFIG)
    if is_stage_config(config):
        raise InputError(f"{out}: holds a stage of a pretraining run; give another out=")
    before = config.get("identity") if isinstance(config, dict) else None
    if not isinstance(before, dict):
        raise InputError(f"{out}: {CONFIG} there is not one of python -m finetune; give another out=")
    _refuse_others(out, before, identity)
    return True


def begin(out: Folder, identity: dict[str, Any], config: dict[str, Any]) -> None:
    """Make the folder that of this model, and note with what code it was begun first."""
    made_with = versions_begun_with(out) if out.exists(CONFIG) else versions()
    noted = {} if made_with is None else {"versions": made_with}
    out.write_json(CONFIG, {"identity": identity, "config": config, **noted})


def versions_begun_with(out: Folder) -> dict[str, str] | None:
    """With what code a folder was begun; None in a new one, and where earlier versions did not note it."""
    config = out.read_json(CONFIG) if out.exists(CONFIG) else {}
    return config.get("versions")


def claim(out: Folder, identity: dict[str, Any]) -> None:
    """Make the folder that of these models. Raises InputError where it is that of others, or of anything else."""
    if out.exists(SWEEP):
        before = out.read_json(SWEEP)
        if not isinstance(before, dict):
            raise InputError(f"{out}: {SWEEP} there is not one of python -m finetune; give another out=")
        _refuse_others(out, before, identity)
    elif out.exists(CONFIG):
        raise InputError(
            f"{out}: holds the results of another command, or of another program ({CONFIG}); give another out="
        )
    else:
        _refuse_unknown(out, SWEEP, SWEPT)
        refuse_occupied(out, "out", (FEATURES,))
    out.write_json(SWEEP, identity)


def _refuse_unknown(out: Folder, made_with: str, left: tuple[str, ...]) -> None:
    """What was begun is gone on with only where it is known what it was made with."""
    there = next((name for name in left if out.exists(name)), None)
    if there is not None:
        raise InputError(
            f"{out}: {there} stands there and {made_with}, which tells what it was made with, is gone; restore it from "
            "a backup, give another out=, or remove this folder"
        )


def _refuse_others(out: Folder, before: dict[str, Any], identity: dict[str, Any]) -> None:
    changed = differences(before, identity)
    if changed:
        raise InputError(
            f"{out}: made with another config ({'; '.join(changed[:3])}); give another out=, or remove this folder"
        )
