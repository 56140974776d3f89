"""The linear head: frozen features to labels or numbers, its strength of regularisation chosen on validation.

Shapes: I images, D features, K labels of the task or of a part of it, S strengths.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.tracking import say
from finetune.bootstrap import Floats, Integers
from finetune.cohort import Cohort
from finetune.config import LinearConfig
from finetune.head_problems import Loss
from finetune.row_blocks import F32, F64, standardised
from finetune.sgd_head import train_head
from finetune.solver import fit_heads
from finetune.tasks import Task, pool_cases

NEVER = -1e4
"""Logit of a class that training has no case of."""
LOSSES: dict[str, Loss] = {
    "multiclass": "softmax", "binary": "sigmoid", "multilabel": "sigmoid", "regression": "squared",
}  # fmt: skip


@dataclass(frozen=True)
class LinearHead:
    """logits = features · weightᵀ + bias, on the features as the encoder gives them."""

    weight_KD: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def logits(self, features_ID: Floats) -> Floats:
        """(I, K)."""
        return np.asarray(features_ID, dtype=np.float64) @ self.weight_KD.T.astype(np.float64) + self.bias_K


@dataclass(frozen=True)
class Choice:
    """What was tried on validation, and what was chosen."""

    head: LinearHead
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]


def fit_linear(
    cohort: Cohort,
    train_ID: Floats,
    val_ID: Floats,
    class_weighting: str,
    config: LinearConfig,
    title: str,
    seed: int = 0,
) -> Choice:
    """Fit one head per strength and keep the one with the best case-level score on validation.

    With `config.sgd` there is one head, trained in an order that the seed decides. Of equally good ones the most
    regularised. The features are standardised, and that is folded into the head that is returned. Labels may be soft,
    and unknown for some images. Raises InputError for features that are not finite.
    """
    weight_I = cohort.training_weights(class_weighting)
    scaled_ID, mean_D, scale_D = standardised(train_ID, weight_I)
    if not np.isfinite(mean_D).all():
        bad = int(cohort.train[~np.isfinite(train_ID).all(axis=1)][0])
        raise InputError(
            f"{title}: image {bad} of the dataset has features that are not finite; the encoder's weights or its input "
            "scale are broken"
        )
    strengths = [0.0] if config.sgd else sorted(config.strengths)
    weight_SDK, bias_SK, converged_S = _fit_parts(cohort, scaled_ID, weight_I, strengths, config, seed)
    weight_SDK = weight_SDK / scale_D[:, None]
    bias_SK = bias_SK - np.einsum("d,sdk->sk", mean_D, weight_SDK)
    heads = [
        LinearHead(np.ascontiguousarray(weight_DK.T, dtype=np.float32), bias_K.astype(np.float32))
        for weight_DK, bias_K in zip(weight_SDK, bias_SK)
    ]
    val_ID = np.asarray(val_ID, dtype=np.float64)  # once for all strengths
    scores = [case_auroc(cohort, cohort.val, head.logits(val_ID)) for head in heads]
    if config.sgd:
        how = {"epoch": config.sgd.epochs, "of": config.sgd.epochs}
        how |= {"lr": config.sgd.lr, "weight_decay": config.sgd.weight_decay, "val_auroc": scores[0]}
        return Choice(heads[0], how, [how])
    tried = [
        {"C": strength, "val_auroc": score, "converged": bool(done)}
        for strength, score, done in zip(strengths, scores, converged_S)
    ]
    best = int(np.argmax(np.round(scores, 9)))
    say(f"{title}: C {strengths[best]:g} of {len(tried)}, validation AUROC {scores[best]:.4f}")
    return Choice(heads[best], tried[best], tried)


def case_auroc(cohort: Cohort, rows: Integers, logits_IK: Floats) -> float:
    """What models are chosen by: the task's score over cases, a case's probability being the mean of its images'."""
    return case_score(cohort, rows, cohort.task.probabilities(logits_IK))


def case_score(cohort: Cohort, rows: Integers, probabilities_IK: Floats) -> float:
    """The task's score over cases, from probabilities of images."""
    cases, scores = pool_cases(cohort.dataset.case_of[rows], probabilities_IK)
    _, first = np.unique(cohort.dataset.case_of[rows], return_index=True)
    assert len(cases) == len(first)
    return cohort.task.score(cohort.truth[rows[first]], scores)


def _fit_parts(
    cohort: Cohort, scaled_ID: F32, weight_I: Floats, strengths: list[float], config: LinearConfig, seed: int
) -> tuple[F64, F64, NDArray[np.bool_]]:
    """Weights (S, D, K), biases (S, K) and whether each strength has converged, over all parts of the task."""
    weights, biases, converged_S = [], [], np.ones(len(strengths), dtype=bool)
    first = 0
    for part in cohort.task.parts:
        columns = slice(first, first + len(part.label_names))
        truth_IK = cohort.truth[cohort.train, columns]
        weight_SDK, bias_SK, done_S = _fit_part(part, scaled_ID, truth_IK, weight_I, strengths, config, seed)
        weights.append(weight_SDK)
        biases.append(bias_SK)
        converged_S, first = converged_S & done_S, columns.stop
    return np.concatenate(weights, axis=2), np.concatenate(biases, axis=1), converged_S


def _fit_part(
    part: Task,
    scaled_ID: F32,
    truth_IK: Floats,
    weight_I: Floats,
    strengths: list[float],
    config: LinearConfig,
    seed: int,
) -> tuple[F64, F64, NDArray[np.bool_]]:
    """The same of one part, for the labels that vary.

    A label that training never saw, or saw in every image, has nothing to learn: its logit is far away from 0.
    """
    loss = LOSSES[part.kind]
    if loss == "squared":
        truth_IK = part.standardised(truth_IK)  # type: ignore[attr-defined]
    known_IK = np.isfinite(truth_IK)
    mass_K = (weight_I[:, None] * np.where(known_IK, truth_IK, 0.0)).sum(axis=0)
    total_K = (weight_I[:, None] * known_IK).sum(axis=0)
    varies_K = known_IK.any(axis=0) if loss == "squared" else (mass_K > 0) & (mass_K < total_K)
    weight_SDK = np.zeros((len(strengths), scaled_ID.shape[1], len(mass_K)))
    bias_SK = np.zeros((len(strengths), len(mass_K)))
    if loss != "squared":
        bias_SK[:, mass_K == 0] = NEVER
        bias_SK[:, (mass_K > 0) & ~varies_K] = -NEVER
    if not varies_K.any():
        return weight_SDK, bias_SK, np.ones(len(strengths), dtype=bool)
    fitted = np.flatnonzero(varies_K)
    if loss == "softmax" and len(fitted) == 2:
        # As scikit-learn does: the sigmoid of one logit is the softmax of that logit beside 0, and is regularised less.
        loss, fitted = "sigmoid", fitted[1:]
    if config.sgd:
        weight_SDK[0][:, fitted], bias_SK[0, fitted] = train_head(
            scaled_ID, truth_IK[:, fitted], weight_I, loss, config.sgd, seed
        )
        return weight_SDK, bias_SK, np.ones(1, dtype=bool)
    found = fit_heads(scaled_ID, truth_IK[:, fitted], weight_I, loss, strengths, config.max_iterations)
    weight_SDK[:, :, fitted], bias_SK[:, fitted] = found.weight_SDK, found.bias_SK
    return weight_SDK, bias_SK, found.converged_S
