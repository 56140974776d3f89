"""What a model says of images and of cases, as tables.

Shapes: I images, N cases, B batch, K labels, M numbers an image.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune.image_list import CASE, ImageList

if TYPE_CHECKING:
    from finetune.bootstrap import Floats
    from finetune.model import Model

NUMBER, ERROR = "number.", "error"
NOT_FINITE = "the model's answer is not finite"


def image_rows(images: ImageList, numbers_BM: "Floats", reasons: list[str], model: "Model") -> pa.Table:
    """The rows of some images, with the numbers from which those of cases will be made."""
    finite: Any = np.isfinite(numbers_BM).all(axis=1)
    errors = [reason or ("" if whole else NOT_FINITE) for reason, whole in zip(reasons, finite)]
    _, probabilities = model.pool(np.arange(len(images)), np.where(finite[:, None], numbers_BM, 0))
    columns = {name: pa.array(values) for name, values in images.columns.items()}
    columns |= {ERROR: pa.array(errors), **_answers(model, probabilities, np.array(errors) == "")}
    return pa.table(columns | {f"{NUMBER}{m}": numbers_BM[:, m] for m in range(numbers_BM.shape[1])})


def _answers(model: "Model", probabilities_NK: "Floats", known_N: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Probabilities (or predicted numbers) and decisions as columns; empty where nothing is known."""
    names, card, unknown = model.yes_or_no, model.card, ~known_N
    columns = {
        f"{'probability' if label in names else 'predicted'}.{label}": pa.array(values, mask=unknown)
        for label, values in zip(card.labels, probabilities_NK.T)
    }
    decided = model.decide(probabilities_NK)
    if names and card.classes:
        columns["decision"] = pa.array([card.classes[number] for number in decided[:, 0]], pa.string(), mask=unknown)
    elif names:
        columns |= {f"decision.{label}": pa.array(decided[:, k], mask=unknown) for k, label in enumerate(names)}
    return columns


def case_rows(whole: pa.Table, model: "Model") -> pa.Table:
    """One row a case, in the order in which cases first come, from those of its images that could be read."""
    names, first, case_I = np.unique(whole.column(CASE).to_numpy().astype(str), return_index=True, return_inverse=True)
    order = np.argsort(first)
    known_I = np.array(whole.column(ERROR).to_pylist()) == ""
    columns = [name for name in whole.column_names if name.startswith(NUMBER)]
    numbers_IM = np.stack([whole.column(name).to_numpy() for name in columns], axis=1)
    probabilities = np.zeros((len(names), len(model.card.labels)))
    if known_I.any():
        cases, pooled = model.pool(case_I[known_I], numbers_IM[known_I])
        probabilities[cases] = pooled
    images, read = np.bincount(case_I), np.bincount(case_I, known_I)
    told = pa.table(
        {
            CASE: names,
            "images": images,
            "unreadable": images - read.astype(int),
            **_answers(model, probabilities, read > 0),
        }
    )
    return told.take(order)


def without_numbers(whole: pa.Table) -> pa.Table:
    """The rows as a user wants them."""
    return whole.drop_columns([name for name in whole.column_names if name.startswith(NUMBER)])
