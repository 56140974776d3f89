"""The linear head: logistic regression on frozen features, its strength chosen on validation.

Shapes: I images, D features, K labels.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusters.tracking import say
from finetune.bootstrap import Floats, Integers
from finetune.cohort import Cohort
from finetune.config import LinearConfig
from finetune.regression import Regression
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

    models: dict[int, Any] = defaultdict(
        lambda: LogisticRegression(solver="lbfgs", max_iter=config.max_iterations, warm_start=True)
    )
    heads, tried = [], []
    for strength in sorted(config.strengths):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            weight_KD, bias_K = _solve(cohort, scaled_ID, weights, strength, models)
        weight_KD = weight_KD / scale_D
        head = LinearHead(weight_KD.astype(np.float32), (bias_K - weight_KD @ mean_D).astype(np.float32))
        auroc = case_auroc(cohort, cohort.val, head.logits(val_ID))
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        heads.append(head)
        tried.append({"C": strength, "val_auroc": auroc, "converged": converged})
    best = int(np.argmax([round(row["val_auroc"], 9) for row in tried]))
    chosen = tried[best]
    say(f"{title}: C {chosen['C']:g} of {len(tried)}, validation AUROC {chosen['val_auroc']:.4f}")
    return Choice(heads[best], chosen, tried)


def case_auroc(cohort: Cohort, rows: Integers, logits_IK: Floats) -> float:
    """The task's score over cases (macro AUROC), a case's probability being the mean of its images'."""
    cases, scores = pool_cases(cohort.dataset.case_of[rows], cohort.task.probabilities(logits_IK))
    _, first = np.unique(cohort.dataset.case_of[rows], return_index=True)
    assert len(cases) == len(first)
    return cohort.task.score(cohort.truth[rows[first]], scores)


def _solve(
    cohort: Cohort, scaled_ID: Floats, weight_I: Floats, strength: float, models: dict[int, Any]
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) on scaled features; a model of each part or label is continued in `models`."""
    weights, biases, first = [], [], 0
    for part in cohort.task.parts:
        columns = range(first, first + len(part.label_names))
        truth_IK = cohort.truth[cohort.train][:, columns]
        first = columns.stop
        if isinstance(part, Regression):
            solved = [_ridge(scaled_ID, t, weight_I, strength) for t in part.standardised(truth_IK).T]
        elif part.kind == "multiclass":
            solved = _logistic(models[columns.start], scaled_ID, truth_IK, weight_I, strength)
        else:
            two = [np.stack([1 - t, t], axis=1) for t in truth_IK.T]
            both = [_logistic(models[k], scaled_ID, t, weight_I, strength) for k, t in zip(columns, two)]
            solved = [(yes[0] - no[0], yes[1] - no[1]) for no, yes in both]
        weights += [weight for weight, _ in solved]
        biases += [bias for _, bias in solved]
    return np.stack(weights), np.array(biases)


def _logistic(
    model: Any, scaled_ID: Floats, share_IC: Floats, weight_I: Floats, strength: float
) -> list[tuple[Floats, float]]:
    """Weight (D,) and bias of each class; a row counts for each class by its share, and not where it is unknown."""
    row, cls = np.nonzero(np.nan_to_num(share_IC) > 0)
    num_features, num_classes = scaled_ID.shape[1], share_IC.shape[1]
    model.set_params(C=strength).fit(scaled_ID[row], cls, sample_weight=weight_I[row] * share_IC[row, cls])
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # the sigmoid of one logit is the softmax of that logit beside 0
        coefficients = np.stack([np.zeros(num_features), coefficients[0]])
        intercepts = np.array([0.0, intercepts[0]])
    found: list[tuple[Floats, float]] = [(np.zeros(num_features), NEVER)] * num_classes
    for c, weight, bias in zip(model.classes_, coefficients, intercepts):
        found[c] = (weight, float(bias))
    return found


def _ridge(scaled_ID: Floats, wanted_I: Floats, weight_I: Floats, strength: float) -> tuple[Floats, float]:
    """Least squares with a penalty of |w|² / C, as strong beside squared errors as in the logistic head."""
    from sklearn.linear_model import Ridge

    known = np.isfinite(wanted_I)
    model = Ridge(alpha=1 / strength).fit(scaled_ID[known], wanted_I[known], sample_weight=weight_I[known])
    return model.coef_, float(model.intercept_)
