"""`python -m finetune evaluate RESULTS data=[DIR2,DIR3] out=OUT`: a fine-tuned model on other hospitals' patients.

Nothing is trained or chosen: temperature and thresholds are those that validation froze. Who was learned from, in
training or pretraining, is refused. Each dataset gets a results folder of its own below OUT.
Shapes: I images, N cases, K labels, D features.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from clusters.command import describe
from clusters.config import Config, InputError, absolute, load_config
from clusters.run_lock import run_lock
from clusters.storage import Folder
from clusters.tracking import TrackingConfig, say
from data.dataset import Dataset, open_dataset
from data.loader import LoaderConfig
from data.splits import SPLITS
from finetune.bootstrap import BootstrapConfig
from finetune.claims import begin, is_begun
from finetune.external_results import predictions_of, results_of
from finetune.foreign import answers, num_features_of, open_training_data, scores_of, training_features
from finetune.label_map import LabelMap, Matched, match_labels
from finetune.own_test import own_test_again
from finetune.patients import unknown_patients
from finetune.report.evidence import HASH, hash_of, why_not_theirs
from finetune.report.headline import where_trained
from finetune.report.page import Beside, write_report
from finetune.report.words import value_of
from finetune.results import PREDICTIONS, REPORT, RESULTS, SCHEMA_VERSION, versions
from finetune.sealed import is_altered, sealed
from finetune.trained import Trained, open_trained
from pretrain.encoder_folder import began_elsewhere, seen_in_file
from pretrain.export import ids_scheme
from pretrain.leakage import if_namesakes, seen_of

Rows = NDArray[np.int64]


class EvaluateConfig(Config):
    """A finished fine-tuning, and what it is evaluated on."""

    results: str = Field(description="results folder of a finished fine-tuning")
    data: str | list[str] = Field(description="dataset folder, path or URL, or several: [a,b]")
    out: str = Field(description="folder that gets one results folder for each dataset")
    label_map: LabelMap = Field(
        default={},
        description="their label: ours, 'unseen' (a condition that the model never learned) or 'ignore'; labels of one "
        "name need no entry",
    )
    splits: list[Literal["train", "val", "test"]] = Field(
        default=list(SPLITS), min_length=1, description="whose images are evaluated on; a foreign dataset's are all new"
    )
    foreign: bool = Field(
        default=True, description="also score how foreign images are, which reads images of the training dataset"
    )
    training_data: str | None = Field(
        default=None, description="where the training dataset lies now; none: where it was, if that is no URL"
    )
    on_leak: Literal["refuse", "warn"] = Field(
        default="refuse", description="where the model has seen these patients; warn: go on and say so"
    )
    seed: int = Field(default=0, ge=0, description="of the resampling")
    batch_size: int = Field(default=256, ge=1, description="images at a time")
    bootstrap: BootstrapConfig = Field(default=BootstrapConfig(), description="intervals")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="reading")
    tracking: TrackingConfig = Field(default=TrackingConfig(wandb="disabled"), description="progress")

    @field_validator("data")
    @classmethod
    def _some(cls, given: str | list[str]) -> str | list[str]:
        if not given:
            raise ValueError("give at least one dataset folder")
        return given

    @property
    def locations(self) -> list[str]:
        """The dataset folders."""
        return [self.data] if isinstance(self.data, str) else self.data


def usage() -> str:
    """What `--help` says."""
    return f"""usage: python -m finetune evaluate RESULTS data=[DIR2,DIR3] out=OUT [key=value …]

Evaluates the model of a results folder on further datasets, without training: figures with intervals, subgroups by
every attribute, and how well images of conditions that it never learned are told from others.

  python -m finetune evaluate /runs/ham-linear data=[/data/pad] out=/runs/ham-on-pad label_map='{{MEL: melanoma}}'

key                  default          meaning
{describe(EvaluateConfig)}"""


def run(argv: Sequence[str]) -> None:
    """Check everything, then evaluate on one dataset after the other; what is finished is reused."""
    words = [f"results={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else list(argv)
    config = load_config(EvaluateConfig, words)
    config.tracking.apply_privacy()
    data = [absolute(location) for location in config.locations]
    config = config.model_copy(update={"results": absolute(config.results), "out": absolute(config.out), "data": data})
    trained = open_trained(config.results)
    if config.training_data is not None:
        config = config.model_copy(update={"training_data": absolute(config.training_data)})
    if config.foreign:
        open_training_data(trained, config)
    chosen = []
    datasets = [open_dataset(location, config.loader.place) for location in config.locations]
    theirs = [label for dataset in datasets for label in dataset.label_names]
    for dataset in datasets:
        matched = truth_of(dataset, trained, config.label_map, theirs)
        rows = _rows(dataset, matched, config)
        chosen.append((dataset, matched, rows, _leaks(trained, dataset, rows, config)))
    if len({dataset.fingerprint for dataset, *_ in chosen}) < len(chosen):
        raise InputError("data: names the same dataset twice; take one out")
    for dataset, matched, rows, warnings in chosen:
        out = Folder(config.out) / f"{dataset.manifest.name}-{dataset.fingerprint[:8]}"
        with run_lock(out, config.tracking.privacy):
            _evaluate(trained, dataset, matched, rows, warnings, out, config)


def truth_of(dataset: Dataset, trained: Trained, label_map: dict[str, str], elsewhere: Sequence[str] = ()) -> Matched:
    """The truth of a dataset in a model's labels, and its numbers of the same names beside them.

    As in training, a case with labels is evaluated where the numbers that the dataset has are known too, so that all
    figures are of the same patients. Raises InputError as `match_labels`.
    """
    model, there = trained.model, dataset.number_names
    matched = match_labels(dataset, model.yes_or_no, model.one_of_several, label_map, elsewhere)
    names, nothing = model.task.number_names, np.full(len(matched.truth), np.nan)
    numbers = [dataset.column(f"number.{name}") if name in there else nothing for name in names]
    known = [np.isfinite(values) for name, values in zip(names, numbers) if name in there]
    return replace(
        matched,
        truth=np.column_stack([matched.truth, *numbers]),
        known=np.all([matched.known, *known], axis=0),
        absent=(*matched.absent, *(name for name in names if name not in there)),
    )


def _rows(dataset: Dataset, matched: Matched, config: EvaluateConfig) -> Rows:
    """The images that are looked at: with some known label, or of an unseen condition."""
    there = [split for split, counts in dataset.manifest.splits.items() if counts.images]
    rows = dataset.rows([split for split in config.splits if split in there])
    used = matched.known | matched.unseen
    if not matched.known[rows].any():
        raise InputError(
            f"{dataset.location}: no image with a label of the model in splits {', '.join(config.splits)}; "
            "import labels for it, or see label_map"
        )
    return rows[used[rows]]


def _leaks(trained: Trained, dataset: Dataset, rows: Rows, config: EvaluateConfig) -> list[str]:
    """Warnings. Raises InputError where the model has seen these patients or images, unless on_leak=warn."""
    seen = seen_in_file(trained.folder, "this model", "run the fine-tuning again")
    warnings = unknown_patients(dataset.manifest)
    if began_elsewhere(trained.entry["lineage"]):
        warnings.append(
            "the model's encoder started from weights of others, of which nobody knows whether they were trained on "
            "these images"
        )
    if ids_scheme(dataset) not in seen.ids:
        warnings.append(
            f"whether the model saw patients of {dataset.manifest.name} is unknown: their ids are of schemes "
            f"{ids_scheme(dataset)} and {', '.join(sorted(seen.ids))}; of images only exact copies are known again, "
            "none that was encoded again or cropped"
        )
    patients, images = seen_of(dataset, rows, seen)
    if patients or images:
        found = f"was trained or pretrained on {patients} patients and {images} images of {dataset.manifest.name}"
        if config.on_leak == "refuse":
            raise InputError(
                f"{config.results} {found}, so its figures would mean nothing; evaluate on splits=[test] of a dataset "
                "that it learned from, or leave these out (on_leak=warn goes on here and says so)"
                f"{if_namesakes([ids_scheme(dataset)], patients, images)}"
            )
        warnings.append(f"LEAKAGE: the model {found}; the figures do not show how it does on new patients")
    return warnings


def _evaluate(
    trained: Trained, dataset: Dataset, matched: Matched, rows: Rows, warnings: list[str], out: Folder,
    config: EvaluateConfig,
) -> None:  # fmt: skip
    """One dataset: what the model says of its images, and all figures of it; results.json last."""
    started = time.time()
    identity = {
        "model": trained.model.card.fingerprint,
        "dataset": dataset.fingerprint,
        "label_map": matched.label_map,
        "settings": config.model_dump(mode="json", include={"splits", "foreign", "seed", "bootstrap"}),
    }
    if is_begun(out, identity) and _is_whole(out):
        print(f"reused: these results were finished earlier: {out.file(RESULTS)}")
        return
    begin(out, identity, config.model_dump(mode="json"))
    warnings = warnings + own_test_again(trained, dataset, rows, config)
    numbers = answers(trained.model, dataset, rows, out, config, dataset.manifest.name)
    # Beside all of these datasets, of which each asks for the same
    reference = training_features(trained, Folder(config.out), config) if config.foreign else None
    foreign = reference and scores_of(trained.model, dataset, matched, rows, numbers, reference, config)
    if config.foreign and foreign is None:
        warnings.append(
            "the training dataset is not where it was, or was behind a URL (training_data=DIR names it): foreign "
            "images not scored"
        )
    logits_IK = numbers[:, : -num_features_of(trained.model)]
    results = results_of(trained, dataset, matched, rows, logits_IK, config)
    predictions = predictions_of(trained, dataset, matched, rows, logits_IK, foreign)
    out.write(PREDICTIONS, predictions)
    told = {
        "schema_version": SCHEMA_VERSION,
        "kind": "external",
        "identity": identity,
        "warnings": warnings + _absent(matched),
        **results,
        "out_of_distribution": foreign.figures if foreign else None,
        "out_of_distribution_counts": foreign.counts if foreign else None,
        HASH: hash_of(predictions),
        "versions": versions(),
        "seconds": round(time.time() - started, 1),
    }
    write_report(out, told, dataset, Beside(trained.model, trained.model.card.size_px))
    out.write_json(RESULTS, sealed(told))
    test = results["models"][trained.name]["test"]["auroc"]
    before = where_trained("auroc", told)
    say(
        f"{dataset.manifest.name}: AUROC {value_of(test)}"
        + ("" if before is None else f", on its own test split {before:.3f} (over the same labels)")
    )
    print(f"report: {out.file(REPORT)}")


def _is_whole(out: Folder) -> bool:
    """Whether all that an evaluation leaves is there and unaltered, and its predictions are its own."""
    if not all(out.exists(name) for name in (RESULTS, PREDICTIONS, REPORT)):
        return False
    results = out.read_json(RESULTS)
    return not is_altered(results) and why_not_theirs(out.read(PREDICTIONS), results) is None


def _absent(matched: Matched) -> list[str]:
    if not matched.absent:
        return []
    return [f"the dataset says nothing of {', '.join(matched.absent)}: undefined, and left out of means"]
