"""Labels with a word on the doubtful ones, which an import marks (`uncertain.<label>`) and never decides.

Shapes: N images, K labels.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError, nearest
from data.dataset import Dataset

Policy = Literal["ignore", "zeros", "ones"]


def labels_under_policy(dataset: Dataset, policy: Policy | dict[str, Policy]) -> NDArray[np.float32]:
    """Labels (N, K) in which a doubtful one is NaN (ignore), 0 (zeros) or 1 (ones); NaN where not labelled.

    The three policies are those of CheXpert (Irvin et al., 2019, section 3.2). A dict names labels; the others
    are ignored where doubtful. Raises InputError for a label that the dataset does not have.
    """
    for name in policy if isinstance(policy, dict) else ():
        if name not in dataset.label_names:
            raise InputError(f"uncertain: {no_such_label(dataset, name)}")
    labels = np.array(dataset.labels)
    for k, name in enumerate(dataset.label_names):
        chosen = policy.get(name, "ignore") if isinstance(policy, dict) else policy
        if chosen != "ignore":
            labels[doubtful(dataset, name), k] = 1 if chosen == "ones" else 0
    return labels


def doubtful(dataset: Dataset, label: str) -> NDArray[np.bool_]:
    """Images whose label the source marks as doubtful, (N,)."""
    if f"uncertain.{label}" not in dataset.column_names:  # nobody doubts it
        return np.zeros(dataset.num_images, dtype=bool)
    return dataset.column(f"uncertain.{label}").astype(bool)


def no_such_label(dataset: Dataset, name: str) -> str:
    """The words for a label that is not there, with those that are."""
    names = dataset.label_names
    return f"{dataset.location} has no label '{name}'{nearest(name, names)}; it has {', '.join(names) or 'none'}"
