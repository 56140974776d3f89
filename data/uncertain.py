"""Labels with a word on the doubtful ones, which an import marks (`uncertain.<label>`) and never decides.

Shapes: N images, K labels.
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError, nearest
from data.dataset import Dataset

Policy = Literal["ignore", "zeros", "ones", "smooth", "smooth_zeros"]

SMOOTH: dict[str, tuple[float, float]] = {"smooth": (0.55, 0.85), "smooth_zeros": (0.0, 0.3)}
"""Between which values a doubtful label is drawn."""


def labels_under_policy(dataset: Dataset, policy: Policy | dict[str, Policy], seed: int = 0) -> NDArray[np.float32]:
    """Labels (N, K) in which a doubtful one is what the policy says; NaN where not labelled.

    `ignore` (NaN), `zeros` and `ones` are the policies of CheXpert (Irvin et al., 2019, section 3.2). `smooth` draws
    it from U(0.55, 0.85), `smooth_zeros` from U(0, 0.3) (U-Ones+LSR and U-Zeros+LSR of Pham et al., 2021,
    arXiv:1911.06475): a case has one value of a label in all its images, which depends on seed, label and case key
    alone. A dict names labels; the others are ignored where doubtful. Raises InputError for a label that the dataset
    does not have.
    """
    for name in policy if isinstance(policy, dict) else ():
        if name not in dataset.label_names:
            raise InputError(f"uncertain: {no_such_label(dataset, name)}")
    labels = np.array(dataset.labels)
    for k, name in enumerate(dataset.label_names):
        chosen = policy.get(name, "ignore") if isinstance(policy, dict) else policy
        rows = np.flatnonzero(doubtful(dataset, name)) if chosen != "ignore" else np.empty(0, dtype=np.int64)
        if chosen in SMOOTH:
            low, high = SMOOTH[chosen]
            drawn = [_uniform(seed, name, key) for key in dataset.column("key")[rows]]
            labels[rows, k] = low + (high - low) * np.array(drawn)
        else:
            labels[rows, k] = 1 if chosen == "ones" else 0
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


def _uniform(seed: int, label: str, key: str) -> float:
    """A number in [0, 1) that depends on these alone."""
    digest = hashlib.sha256(repr(("doubt", seed, label, key)).encode()).digest()
    return int.from_bytes(digest[:4], "little") * 2.0**-32
