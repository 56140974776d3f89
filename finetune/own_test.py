"""Whether an evaluation looks once more at the test split that a model was judged on, under whatever name.

The same patients may be imported again with other settings, or the same photographs under other ids.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.tracking import say
from data.dataset import Dataset
from finetune.foreign import open_training_data
from finetune.results import PREDICTIONS, count_evaluation
from finetune.trained import Trained
from pretrain.encoder_folder import seen_in_file
from pretrain.export import ids_scheme

if TYPE_CHECKING:
    from finetune.external import EvaluateConfig

Rows = NDArray[np.int64]


def own_test_again(trained: Trained, dataset: Dataset, rows: Rows, config: "EvaluateConfig") -> list[str]:
    """Where these rows hold patients or images of the model's own test split: one more look at it, which is counted.

    Returns what its reader must know.
    """
    if dataset.fingerprint == trained.results["dataset"]["fingerprint"]:
        if "test" not in config.splits:
            return []
        what = "the test split is that"
    elif not trained.folder.exists(PREDICTIONS):
        return [f"whether this is once more the model's own test split is unknown: its {PREDICTIONS} is gone"]
    else:
        patients = _own_patients(trained)
        num_patients = _shared(dataset.column("patient")[rows], patients) if _same_scheme(trained, dataset) else 0
        num_images = _shared(dataset.column("pixel_sha256")[rows], _own_images(trained, patients, config))
        shared = [(num_patients, "patients"), (num_images, "images (pixel for pixel)")]
        if not num_patients and not num_images:
            return []
        what = f"{' and '.join(f'{num} {name}' for num, name in shared if num)} stand in the test split"
    told = f"{what} of the dataset the model was trained on, looked at {count_evaluation(trained.folder)} times by now"
    say(f"{dataset.manifest.name}: {told}")
    return [told]


def _own_patients(trained: Trained) -> set[str]:
    """The patients of the model's own test figures."""
    content = io.BytesIO(trained.folder.read(PREDICTIONS))
    told = pq.read_table(content, columns=["split", "patient"]).to_pydict()
    return {patient for split, patient in zip(told["split"], told["patient"]) if split == "test"}


def _own_images(trained: Trained, patients: set[str], config: "EvaluateConfig") -> set[str]:
    """Hashes of the images of these patients; none where the training dataset is not at hand."""
    try:
        dataset = open_training_data(trained, config)
    except InputError:  # another dataset lies there by now, which only foreign=true has need to refuse
        dataset = None
    if dataset is None:
        return set()
    own = np.isin(dataset.column("patient").astype(str), list(patients))
    return {str(image) for image in dataset.column("pixel_sha256")[own]}


def _same_scheme(trained: Trained, dataset: Dataset) -> bool:
    """Whether the two datasets' patient ids can be compared.

    Results of before do not name their scheme: it is one of those of whom the model learned from.
    """
    own = trained.results["dataset"].get("ids")
    schemes = {own} if own else seen_in_file(trained.folder, "this model", "run the fine-tuning again").ids
    return ids_scheme(dataset) in schemes


def _shared(column: NDArray[Any], own: set[str]) -> int:
    return len({str(value) for value in column} & own)
