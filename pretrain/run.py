"""A recipe from end to end: what is reused, what is run, and the encoder at the end."""

import re
from typing import Any

import numpy as np

from clusters import distributed
from clusters.config import InputError, absolute, differences
from clusters.launch import launch
from clusters.storage import Folder
from clusters.tracking import Tracker, say
from data.dataset import Dataset, open_dataset
from pretrain.config import PretrainConfig
from pretrain.encoder import create_encoder
from pretrain.export import copy_encoder
from pretrain.loop import run_stage
from pretrain.methods import METHODS
from pretrain.stage import Rows


def pretrain(config: PretrainConfig) -> None:
    """Check what can be checked before anything is started, then run the stages that are not done yet.

    Raises InputError for bad input and for a run folder made otherwise.
    """
    config = config.model_copy(update={"data": absolute(config.data), "run": absolute(config.run)})
    run = Folder(config.run)
    _check(config)
    dataset_fingerprint = open_dataset(config.data).fingerprint
    remaining = _prepare(config, run, dataset_fingerprint)
    if remaining:
        launch(train, config, config.cluster, run)
    print(f"encoder: {run / 'encoder'}")


def train(config: PretrainConfig) -> dict[str, Any]:
    """What each worker runs: every stage that is not finished, one after another."""
    run, dataset = Folder(config.run), open_dataset(config.data)
    tracker = Tracker(run, config.tracking, run.location.rsplit("/", 1)[-1], config.model_dump(mode="json"))
    previous: Folder | None = None
    fingerprint: str | None = None
    for number in range(len(config.stages)):
        folder = run / config.stage_name(number)
        finished = distributed.broadcast_object(_finished(folder) if distributed.is_main() else None)
        if finished is None:
            if distributed.is_main():
                identity = config.stage_identity(number, dataset.fingerprint, fingerprint)
                folder.write_json("config.json", {"identity": identity, "config": config.model_dump(mode="json")})
            run_stage(config, number, folder, previous, dataset, tracker)
        previous, fingerprint = folder, distributed.broadcast_object(_finished(folder))
    if distributed.is_main() and previous is not None:
        copy_encoder(previous / "encoder", run / "encoder")
    tracker.close()
    return {"encoder": fingerprint}


def _check(config: PretrainConfig) -> None:
    if "test" in config.splits:
        raise InputError("splits: the test split is never pretrained on; take it out of splits")
    for number, stage in enumerate(config.stages):
        if stage.batch_size % max(1, config.cluster.num_workers):
            raise InputError(
                f"stages.{number}.batch_size: {stage.batch_size} cannot be divided equally among "
                f"{config.cluster.num_workers} workers; choose a multiple"
            )
    create_encoder(config.encoder)
    dataset = open_dataset(config.data)
    rows = dataset.rows(config.splits)
    _check_patients(dataset, rows)
    for number, stage in enumerate(config.stages):
        samples = METHODS[stage.method].samples(dataset, rows)
        if stage.batch_size > len(samples):
            raise InputError(
                f"stages.{number}.batch_size: {stage.batch_size} is more than the {len(samples)} samples of "
                f"splits {config.splits}; a sample would be its own negative. Choose at most {len(samples)}"
            )


def _check_patients(dataset: Dataset, rows: Rows) -> None:
    """The import keeps patients within a split; a run checks it again, since all evaluation rests on it."""
    patients = dataset.column("patient")
    others = np.setdiff1d(np.arange(dataset.num_images), rows)
    crossing = set(patients[rows]) & set(patients[others])
    if crossing:
        raise InputError(
            f"{dataset.location}: {len(crossing)} patients stand in the pretraining splits and in others, "
            f"e.g. {sorted(crossing)[0]}; import the dataset again"
        )


def _prepare(config: PretrainConfig, run: Folder, dataset_fingerprint: str) -> bool:
    """Say what is reused and what is redone; refuse or clear away what was made otherwise.

    Returns whether anything is left to do. Removes nothing but Manyview's own stages, and those only where
    on_change=redo asks for it.
    """
    if run.exists("encoder") and not _is_ours(run / "encoder", "manyview"):
        raise InputError(f"{run / 'encoder'}: not an encoder that Manyview wrote; give another run=")
    on_disk = _stages_on_disk(run)
    previous: str | None = None
    for number in range(len(config.stages)):
        name, there = config.stage_name(number), on_disk.get(number + 1)
        if there is None:
            changed = [f"stage {number + 1}: none -> {name}"] if max(on_disk, default=0) > number else []
        elif there != name:
            changed = [f"stage {number + 1}: {there} -> {name}"]
        else:
            before = (run / name).read_json("config.json")["identity"]
            changed = differences(before, config.stage_identity(number, dataset_fingerprint, previous))
        if changed and config.on_change == "refuse":
            raise InputError(
                f"{run / (there or name)}: made with another config ({'; '.join(changed[:3])}); set on_change=redo "
                f"to do {name} and what follows again, or give another run="
            )
        if changed:
            say(f"{name}: done again, since {'; '.join(changed[:3])}")
            for place, old in on_disk.items():
                if place > number:
                    run.remove(old)
            run.remove("encoder")
            return True
        previous = _finished(run / name)
        if previous is None:
            return True
        say(f"{name}: reused, finished earlier ({run / name})")
    at_the_top = run.read_json("encoder/config.json")["manyview"] if run.exists("encoder/config.json") else {}
    return at_the_top.get("fingerprint") != previous


def _stages_on_disk(run: Folder) -> dict[int, str]:
    """The stage folders that Manyview wrote, by their place."""
    named = {name: re.fullmatch(r"([1-9]\d*)-[a-z0-9]+", name) for name in run.names()}
    return {int(m[1]): name for name, m in named.items() if m and _is_ours(run / name, "identity")}


def _is_ours(folder: Folder, mark: str) -> bool:
    try:
        return mark in folder.read_json("config.json")
    except (OSError, ValueError, TypeError):
        return False


def _finished(folder: Folder) -> str | None:
    """The fingerprint of a finished stage's encoder."""
    return folder.read_json("finished.json")["encoder"] if folder.exists("finished.json") else None
