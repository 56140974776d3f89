"""The linear head: logistic regression on frozen features, its strength chosen on validation.

Shapes: I images, D features, K labels.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusters.tracking import say
from finetune.bootstrap import Floats, Integers
from finetune.cohort import Cohort
from finetune.config import LinearConfig
from finetune.metrics import macro_auroc
from finetune.tasks import pool_cases

NEVER = -1e4
"""Logit of a class that training has no case of."""


@dataclass(frozen=True)
class LinearHead:
    """logits = features · weightᵀ + bias, on the features as the encoder gives them."""

    weight_KD: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def logits(self, features_ID: Floats) -> Floats:
        """(I, K)."""
        return features_ID.astype(np.float64) @ self.weight_KD.T.astype(np.float64) + self.bias_K


@dataclass(frozen=True)
class Choice:
    """What was tried on validation, and what was chosen."""

    head: LinearHead
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]


# One thread: small products are slowed tenfold by threads that wait for a busy core, and the
# result would depend on their number.
@threadpool_limits.wrap(limits=1)
def fit_linear(
    cohort: Cohort,
    train_ID: Floats,
    val_ID: Floats,
    class_weighting: str,
    config: LinearConfig,
    title: str,
) -> Choice:
    """Fit one head per strength and keep the one with the best case-level macro AUROC on validation.

    Of equally good ones the most regularised. scikit-learn's L-BFGS on standardised features, begun from the
    solution before it; the standardisation is folded into the head that is returned.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weights = cohort.training_weights(class_weighting)
    mean_D = np.average(train_ID, axis=0, weights=weights)
    scale_D = np.sqrt(np.average((train_ID - mean_D) ** 2, axis=0, weights=weights))
    scale_D[scale_D <= 1e-6 * scale_D.max()] = 1.0  # dead features stay as they are
    scaled_ID = (train_ID - mean_D) / scale_D
    classes = cohort.class_of(cohort.train)

    model = LogisticRegression(solver="lbfgs", max_iter=config.max_iterations, warm_start=True)
    heads, tried = [], []
    for strength in sorted(config.strengths):
        model.set_params(C=strength)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(scaled_ID, classes, sample_weight=weights)
        head = _unscaled(model, cohort, mean_D, scale_D)
        auroc = case_auroc(cohort, cohort.val, head.logits(val_ID))
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        heads.append(head)
        tried.append({"C": strength, "val_auroc": auroc, "converged": converged})
    best = int(np.argmax([round(row["val_auroc"], 9) for row in tried]))
    chosen = tried[best]
    say(f"{title}: C {chosen['C']:g} of {len(tried)}, validation AUROC {chosen['val_auroc']:.4f}")
    return Choice(heads[best], chosen, tried)


def case_auroc(cohort: Cohort, rows: Integers, logits_IK: Floats) -> float:
    """Macro AUROC over cases, a case's probability being the mean of its images'."""
    cases, scores = pool_cases(cohort.dataset.case_of[rows], cohort.task.probabilities(logits_IK))
    _, first = np.unique(cohort.dataset.case_of[rows], return_index=True)
    assert len(cases) == len(first)
    return macro_auroc(cohort.truth[rows[first]], scores)


def _unscaled(model: Any, cohort: Cohort, mean_D: Floats, scale_D: Floats) -> LinearHead:
    """The head over all labels of the task, on features as they come."""
    weight, bias = model.coef_ / scale_D, model.intercept_ - (model.coef_ / scale_D) @ mean_D
    num_labels = len(cohort.task.label_names)
    if num_labels == 1:
        return LinearHead(weight.astype(np.float32), bias.astype(np.float32))
    if len(model.classes_) == 2:
        # The sigmoid of one logit is the softmax of that logit beside 0.
        weight, bias = np.stack([np.zeros_like(weight[0]), weight[0]]), np.array([0.0, bias[0]])
    full_weight = np.zeros((num_labels, weight.shape[1]), dtype=np.float32)
    full_bias = np.full(num_labels, NEVER, dtype=np.float32)
    full_weight[model.classes_], full_bias[model.classes_] = weight, bias
    return LinearHead(full_weight, full_bias)
