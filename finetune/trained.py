"""A finished fine-tuning, opened again: its model, and what its results say of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clusters.config import InputError
from clusters.storage import Folder
from finetune.bootstrap import Floats
from finetune.results import RESULTS, SCHEMA_VERSION
from finetune.sealed import read_sealed
from finetune.thresholds import Thresholds

if TYPE_CHECKING:
    from finetune.model import Model


@dataclass(frozen=True)
class Trained:
    """A finished fine-tuning: its model, its results, and the name of the model in them."""

    folder: Folder
    model: "Model"
    results: dict[str, Any]
    name: str

    @property
    def entry(self) -> dict[str, Any]:
        """What the results say of the model."""
        return self.results["models"][self.name]

    def frozen(self) -> Thresholds:
        """The thresholds that validation chose, as the results tell them."""
        labels = self.model.yes_or_no

        def at(name: str) -> Floats:
            found = [self.entry["test"]["per_class"][label][name] for label in labels]
            # A row without a number is a threshold that nobody reaches; without a row there is none.
            told = [{"threshold": np.nan} if row is None else row for row in found]
            return np.array([np.inf if row["threshold"] is None else row["threshold"] for row in told])

        thresholds = self.entry["thresholds"] or {}
        decision = np.array([thresholds.get(label, 0.5) for label in labels])
        one_sided = tuple(self.entry["thresholds_without_positives"])
        return Thresholds(decision, at("at_specificity"), at("at_sensitivity"), one_sided)


def open_trained(location: str) -> Trained:
    """A finished results folder. Raises InputError where it is none, was altered, or cannot be used."""
    from finetune.model_folder import load_model

    folder = Folder(location)
    if not folder.exists(RESULTS):
        raise InputError(f"{location}: no {RESULTS} here; give the results folder of a finished fine-tuning")
    results = read_sealed(folder, RESULTS)
    if results.get("kind") == "external":
        raise InputError(f"{location}: made by `evaluate`; give the results folder of the fine-tuning itself")
    if results.get("schema_version") != SCHEMA_VERSION or results.get("kind") != "finetune":
        raise InputError(f"{folder.file(RESULTS)}: of another version or kind; run the fine-tuning again")
    return Trained(folder, load_model(location), results, next(iter(results["models"])))
