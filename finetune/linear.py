"""The linear head: frozen features to labels or numbers, its strength of regularisation chosen on validation.

Shapes: I images, N cases, D features, K labels of the task or of a part of it, S strengths.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from clusters.tracking import say
from finetune.bootstrap import Floats
from finetune.case_heads import CaseImages, train_case_head
from finetune.cohort import Cohort, case_auroc
from finetune.config import LinearConfig
from finetune.head_problems import Loss
from finetune.linear_head import LinearHead
from finetune.row_blocks import F32, F64, standardised
from finetune.sgd_head import train_head
from finetune.solver import fit_heads
from finetune.tasks import Task, pool_cases, score_key

NEVER = -1e4
"""Logit of a class that training has no case of."""
LOSSES: dict[str, Loss] = {
    "multiclass": "softmax", "binary": "sigmoid", "multilabel": "sigmoid", "regression": "squared",
}  # fmt: skip


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

    With `config.sgd` there is one head, trained in an order that the seed decides; with `config.pooling` a case is
    learned as a whole (`finetune.case_heads`). Of equally good ones the most regularised. The features are
    standardised, and that is folded into the head that is returned. Labels may be soft, and unknown for some images.
    Raises InputError for features that are not finite.
    """
    samples, values_ID = (cohort, train_ID) if config.pooling == "none" else _whole_cases(cohort, train_ID)
    weight_I = samples.training_weights(class_weighting)
    scaled_ID, mean_D, scale_D = standardised(values_ID, weight_I)
    _check_finite(mean_D, cohort, train_ID, title)
    strengths = [0.0] if config.sgd else sorted(config.strengths)
    weight_SDK, bias_SK, converged_S = _fit_parts(samples, scaled_ID, weight_I, strengths, config, seed)
    heads = [LinearHead(weight_DK.T, bias_K, config.pooling) for weight_DK, bias_K in zip(weight_SDK, bias_SK)]
    tried: list[dict[str, Any]] = [{"C": strength} for strength in strengths]
    if config.sgd:
        told = {"epoch": config.sgd.epochs, "of": config.sgd.epochs}
        tried = [{**told, "lr": config.sgd.lr, "weight_decay": config.sgd.weight_decay}]
    if config.pooling in ("max", "attention"):
        images = CaseImages.of(cohort, _scaled(train_ID, mean_D, scale_D), weight_I)
        scaled_val_ID = _scaled(val_ID, mean_D, scale_D)
        for number, strength in enumerate(strengths):
            heads[number], steps = train_case_head(heads[number], images, cohort, scaled_val_ID, strength, seed)
            tried[number] |= steps
    heads = [head.unscaled(mean_D, scale_D) for head in heads]
    key, name = score_key(cohort.task), cohort.task.score_name
    val_ID = np.asarray(val_ID, dtype=np.float64)  # once for all strengths
    case_I = cohort.dataset.case_of[cohort.val]
    scores = [case_auroc(cohort, cohort.val, head.logits(val_ID, case_I)) for head in heads]
    best = int(np.argmax(np.round(scores, 9)))
    for row, score, done in zip(tried, scores, converged_S):
        row |= {key: score} if config.sgd else {key: score, "converged": bool(done)}
    if not config.sgd:
        say(f"{title}: C {strengths[best]:g} of {len(tried)}, validation {name} {scores[best]:.4f}")
    return Choice(heads[best], tried[best], tried)


def _whole_cases(cohort: Cohort, train_ID: Floats) -> tuple[Cohort, Floats]:
    """Each training case as one image, the first of it, and the mean features of its images, (N, D)."""
    case_I = cohort.dataset.case_of[cohort.train]
    first = np.unique(case_I, return_index=True)[1]
    return replace(cohort, train=cohort.train[first]), pool_cases(case_I, train_ID)[1].astype(np.float32)


def _scaled(values_ID: Floats, mean_D: F64, scale_D: F64) -> F32:
    return ((values_ID - mean_D) / scale_D).astype(np.float32)


def _check_finite(mean_D: F64, cohort: Cohort, train_ID: Floats, title: str) -> None:
    if not np.isfinite(mean_D).all():
        bad = int(cohort.train[~np.isfinite(train_ID).all(axis=1)][0])
        raise InputError(
            f"{title}: image {bad} of the dataset has features that are not finite; the encoder's weights or its input "
            "scale are broken"
        )


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
