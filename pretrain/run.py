"""A recipe from end to end: what is reused, what is run, and the encoder at the end."""

import hashlib
from typing import Any

import numpy as np
import torch

from clusters import distributed
from clusters.config import InputError, absolute, differences
from clusters.launch import launch
from clusters.occupied import refuse_occupied
from clusters.run_lock import run_lock
from clusters.storage import Folder
from clusters.tracking import Tracker, recipe_name, say
from clusters.versions import versions_here
from clusters.wandb_run import Made
from data.combined import AnyDataset, open_datasets, parts_of, samples_of_parts, shares, tell_of_caches
from pretrain.compute import checkpoint_activations, in_one_order
from pretrain.config import PretrainConfig
from pretrain.encoder import check_encoder, create_encoder
from pretrain.encoder_harm import foreign_encoder, harm_at_the_top
from pretrain.export import copy_encoder
from pretrain.fits import check_memory, needs_of
from pretrain.heads import first_layers
from pretrain.initial_weights import check_start
from pretrain.leakage import check_leakage, check_seen_before, pretraining_rows
from pretrain.loop import run_stage
from pretrain.methods import METHODS
from pretrain.monitor import probe_dataset
from pretrain.patient_mask import check_patient_mask
from pretrain.report import REPORT, write_report
from pretrain.stage import Rows
from pretrain.stage_folder import finished, other_code, stages_on_disk, stored_config
from pretrain.weights_source import NONE, find_weights, weights_fingerprint, with_absolute_weights
from pretrain.workers import elastic_remarks, possible_workers


def pretrain(config: PretrainConfig) -> None:
    """Check what can be checked before anything is started, then run the stages that are not done yet.

    Raises InputError for bad input and for a run folder made otherwise.
    """
    config = with_absolute_locations(config)
    run = Folder(config.run)
    began_from = weights_that_are_gone(config, run)
    identity = check(config if began_from is None else _without_weights(config))
    with run_lock(run, config.tracking.privacy):
        remaining = _prepare(config, run, identity, began_from)
        if remaining:
            sizes = possible_workers(config)
            for line in elastic_remarks(config, sizes):
                say(line)
            launch(train, config, config.cluster, run, sizes, needs_of(config), heeds=True)
    print(f"encoder: {run / 'encoder'}")


def with_absolute_locations(config: PretrainConfig) -> PretrainConfig:
    """The config with all that lies somewhere made absolute. Raises InputError where workers would not find it."""
    locations = {
        "data": [absolute(location) for location in config.locations],
        "held_out": [absolute(location) for location in config.held_out],
        "run": absolute(config.run),
        "encoder": with_absolute_weights(config.encoder),
    }
    return config.model_copy(update=locations)


def train(config: PretrainConfig) -> dict[str, Any]:
    """What each worker runs: every stage that is not finished, one after another."""
    in_one_order(config.compute.deterministic)
    run, dataset = Folder(config.run), open_datasets(config.locations, config.weights, config.loader.place)
    tell_of_caches(dataset)
    rows = pretraining_rows(dataset, config)
    name, told = run.location.rsplit("/", 1)[-1], config.model_dump(mode="json")
    tracker = Tracker(run, config.tracking, name, told, "pretraining", recipe_name(config.words(), config.recipe()))
    previous: Folder | None = None
    fingerprint: str | None = None
    folders = [run / config.stage_name(number) for number in range(len(config.stages))]
    done = distributed.broadcast_object([_encoder_of(folder) for folder in folders])
    if config.cluster.elastic:
        say(f"workers: {distributed.world_size()} of {config.cluster.said}")
    check_memory(config, [number for number, ended in enumerate(done) if ended is None])
    for number, folder in enumerate(folders):
        if done[number] is None:
            chosen = config.model_copy(update={"augment": where_views_are_finished(config, folder)})
            distributed.barrier()
            if distributed.is_main():
                identity = config.stage_identity(number, dataset_identity(dataset, rows, config), fingerprint)
                versions = versions_here()
                if said := other_code(folder, versions):
                    say(f"{folder.location.rsplit('/', 1)[-1]}: {said}")
                made_with = {"config": chosen.model_dump(mode="json"), "versions": versions}
                folder.write_json("config.json", {"identity": identity, **made_with})
            run_stage(chosen, number, folder, previous, dataset, rows, tracker)
        previous, fingerprint = folder, distributed.broadcast_object(_encoder_of(folder))
    if distributed.is_main() and previous is not None:
        copy_encoder(previous / "encoder", run / "encoder")
        write_report(run, config, dataset, rows)
        datasets = [Made("dataset", part.fingerprint, part.location) for part in parts_of(dataset)]
        tracker.made(Made("encoder", str(fingerprint), str(run / "encoder")), datasets)
    tracker.close()
    return {"encoder": fingerprint}


def where_views_are_finished(config: PretrainConfig, folder: Folder) -> str:
    """`loader` or `device`: as the stage was begun, since the two differ by rounding.

    Raises InputError where the config asks for the other one.
    """
    here = "loader" if distributed.device().type == "cpu" else "device"
    begun = folder.read_json("config.json")["config"]["augment"] if folder.exists("config.json") else "auto"
    if "auto" not in (begun, config.augment) and begun != config.augment:
        raise InputError(
            f"{folder}: begun with augment={begun}, which differs from augment={config.augment} by rounding; "
            f"give augment={begun} or auto to go on"
        )
    return next(choice for choice in (begun, config.augment, here) if choice != "auto")


def dataset_identity(dataset: AnyDataset, rows: Rows, config: PretrainConfig) -> Any:
    """What the images that are learned from depend on: one fingerprint or, where more is to be said, all of it."""
    parts = parts_of(dataset)
    left_out = np.setdiff1d(dataset.rows(config.splits), rows)
    if len(parts) == 1 and not len(left_out):
        return parts[0].fingerprint
    identity: dict[str, Any] = {"fingerprints": [part.fingerprint for part in parts], "weights": config.weights}
    if len(left_out):
        named = hashlib.sha256(left_out.astype("<i8").tobytes()).hexdigest()[:16]
        identity["left_out"] = f"{len(left_out)} images ({named})"
    return identity


def check_recipe(config: PretrainConfig) -> None:
    """Raise InputError for what is wrong with a recipe whatever the data."""
    if "test" in config.splits:
        raise InputError("splits: the test split is never pretrained on; take it out of splits")
    possible_workers(config)
    for number, stage in enumerate(config.stages):
        check_encoder(config.encoder, config.stage_views(number).size_px)
        with torch.device("meta"):
            encoder = create_encoder(config.encoder, config.stage_views(number).size_px)
            module = METHODS[stage.method](stage, encoder, int(encoder.num_features))  # type: ignore[arg-type]
        first_layers(module.projection, stage.keep_projection_layers)
        if config.compute.checkpoint_activations:
            checkpoint_activations(encoder, config.encoder.name)
    check_start(config.encoder, config.stage_views(0))


def check(config: PretrainConfig) -> Any:
    """Raise InputError for what can be known to fail before anything is started; returns the dataset's identity."""
    check_recipe(config)
    dataset = open_datasets(config.locations, config.weights, config.loader.place)
    check_leakage(dataset, config)
    check_seen_before(dataset, config)
    _check_probe(dataset, config)
    rows = pretraining_rows(dataset, config)
    for number, stage in enumerate(config.stages):
        method = METHODS[stage.method]
        samples = method.samples(dataset, rows)
        for line in method.remarks(stage, dataset, samples):  # type: ignore[arg-type]
            say(f"{config.stage_name(number)}: {line}")
        check_patient_mask(dataset, samples, stage, f"stages.{number}.patient_mask")
        if stage.batch_size > len(samples):
            raise InputError(
                f"stages.{number}.batch_size: {stage.batch_size} is more than the {len(samples)} samples of "
                f"splits {config.splits}; a sample would be its own negative. Choose at most {len(samples)}"
            )
        sizes = [int(sizes.sum()) for sizes in samples_of_parts(dataset, samples.shard_sizes)]
        for part, size, share in zip(parts_of(dataset), sizes, shares(dataset, samples.shard_sizes)):
            if stage.num_steps(len(samples)) * stage.batch_size * share < 1:
                raise InputError(f"weights: {part.location} would give none of the samples of stage {number + 1}")
            if np.floor(stage.batch_size * share) > size:
                raise InputError(
                    f"stages.{number}.batch_size: {100 * share:.3g} % of {stage.batch_size} is more than the {size} "
                    f"samples of {part.location}, which would stand several times in one batch; lower the batch size "
                    "or this dataset's weight"
                )
    return dataset_identity(dataset, rows, config)


def _check_probe(dataset: AnyDataset, config: PretrainConfig) -> None:
    """Say once which datasets the probe leaves out. Raises InputError for labels that collide."""
    probed = parts_of(probe_dataset(dataset, config.probe.dataset))
    labelled = [part for part in parts_of(dataset) if part.label_names]
    if config.probe.dataset is None and len(probed) < len(labelled):
        say(f"probe: on {probed[0].location} alone, the first with labels; the labels of the datasets differ")


def weights_that_are_gone(config: PretrainConfig, run: Folder) -> str | None:
    """The fingerprint of the weights that a finished first stage began from, where they cannot be found any more.

    They have done their part. Only the same place is believed to have held them.
    """
    folder = run / config.stage_name(0)
    begun = None if config.encoder.weights == NONE else stored_config(folder)
    if begun is None or _encoder_of(folder) is None or begun["config"]["encoder"]["weights"] != config.encoder.weights:
        return None
    try:
        find_weights(config.encoder)
    except InputError:
        say(f"encoder.weights: {config.encoder.weights} cannot be found; {folder} is finished and needs it no more")
        return begun["identity"]["initial_weights"]
    return None


def _without_weights(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": NONE})})


def _prepare(config: PretrainConfig, run: Folder, identity: Any, began_from: str | None) -> bool:
    """Say what is reused and what is redone; refuse or clear away what was made otherwise.

    `began_from`: the fingerprint of weights that the first stage began from and that are there no more.
    Returns whether anything is left to do. Removes nothing but Manyview's own stages, and those only where
    on_change=redo asks for it.
    """
    if not_of_ours := foreign_encoder(run):
        raise InputError(not_of_ours)
    on_disk = stages_on_disk(run)
    if not on_disk:
        # Of a run whose stages were removed to make room, these are left.
        refuse_occupied(run, "run", ("encoder", REPORT) if run.exists("encoder") else ())
    previous: str | None = None
    for number in range(len(config.stages)):
        name, there = config.stage_name(number), on_disk.get(number + 1)
        if there is None:
            changed = [f"stage {number + 1}: none -> {name}"] if max(on_disk, default=0) > number else []
        elif there != name:
            changed = [f"stage {number + 1}: {there} -> {name}"]
        else:
            before = stored_config(run / name)
            now = config.stage_identity(number, identity, previous, began_from)
            changed = ["config.json is gone or damaged"] if before is None else differences(before["identity"], now)
        if changed and config.on_change == "refuse":
            raise InputError(
                f"{run / (there or name)}: made with another config ({'; '.join(changed[:3])}); set on_change=redo "
                f"to do {name} and what follows again, or give another run="
            )
        if changed:
            if number == 0:
                weights_fingerprint(config.encoder)  # refused where they are gone, before anything is removed
            say(f"{name}: done again, since {'; '.join(changed[:3])}")
            for place, old in on_disk.items():
                if place > number:
                    run.remove(old)
            run.remove("encoder")
            return True
        previous = _encoder_of(run / name)
        if previous is None:
            return True
        say(f"{name}: reused, finished earlier ({run / name})")
    assert previous is not None
    harm = harm_at_the_top(run, name, previous)
    if harm:
        say(f"{run}: {harm}; copied from {name}")
    return harm is not None


def _encoder_of(folder: Folder) -> str | None:
    """The fingerprint of a finished stage's encoder."""
    ended = finished(folder)
    return ended.encoder if ended is not None else None
