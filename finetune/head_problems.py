"""The problems that `finetune.solver` minimises together, and what is computed of them: gradients and slopes.

Shapes: I images, B a block of them, D features, R of the basis (+ 1 the bias), K labels, P problems (each with its own
strength), J columns of a problem (K of softmax, else 1), C = P · J columns in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Floats
from finetune.row_blocks import F32, F64, RowBlocks

Loss = Literal["softmax", "sigmoid", "squared"]


@dataclass
class Problems:
    """The problems that still run: targets and weights by column, and what has been found so far.

    The Hessian at the beginning is `curvature_PRJ` along the basis and, of softmax, along the mixtures of labels
    `mixing_JJ`. `null_loss_P` is the loss without any feature; `number_P` is which problems of all these are.
    """

    strength_P: F64
    truth_IC: F32
    weight_IC: F32
    logits_IC: F32
    coefficient_PRJ: F64
    curvature_PRJ: F64
    mixing_JJ: F64
    null_loss_P: F64
    number_P: NDArray[np.int64]


def begin(truth_IK: Floats, weight_I: Floats, eigenvalue_R: F64, loss: Loss, strengths: Sequence[float]) -> Problems:
    """All problems at zero weights and the bias that fits best without features."""
    known_IK = np.isfinite(truth_IK)
    truth = np.where(known_IK, truth_IK, 0.0)
    weight_IK = np.where(known_IK, weight_I[:, None], 0.0)
    total_K = weight_IK.sum(axis=0)
    share_K = (weight_IK * truth).sum(axis=0) / total_K
    if loss == "squared":
        bias_K, spread_K = share_K, np.ones_like(share_K)
        null_K = 0.5 * (weight_IK * (truth - share_K) ** 2).sum(axis=0)
    else:
        bias_K = np.log(share_K) - (0.0 if loss == "softmax" else np.log1p(-share_K))
        spread_K = share_K * (1 - share_K)
        null_K = -total_K * share_K * np.log(share_K)
        null_K -= 0.0 if loss == "softmax" else total_K * (1 - share_K) * np.log1p(-share_K)
    if loss == "softmax":  # labels pull at each other: their curvature is diag(share) - share shareᵀ
        spread_K, mixing_JJ = np.linalg.eigh(np.diag(share_K) - np.outer(share_K, share_K))
    else:
        mixing_JJ = np.ones((1, 1))
    curvature_RK = np.append(eigenvalue_R / weight_I.sum(), 1.0)[:, None] * (np.maximum(spread_K, 0) * total_K)
    num_strengths, (num_rows, num_labels) = len(strengths), curvature_RK.shape
    curvature_SRK = np.repeat(curvature_RK[None], num_strengths, axis=0)
    curvature_SRK[:, :-1] += 1 / np.array(strengths)[:, None, None]
    curvature_SRK[:, -1] += 1e-6 * total_K  # a constant for all labels has none
    coefficient_SRK = np.zeros_like(curvature_SRK)
    coefficient_SRK[:, -1] = bias_K

    def by_problem(values_SRK: F64) -> F64:
        one_each = values_SRK.transpose(0, 2, 1).reshape(-1, num_rows, 1)
        return values_SRK if loss == "softmax" else np.ascontiguousarray(one_each)

    null_SP = np.full((num_strengths, 1), null_K.sum()) if loss == "softmax" else np.tile(null_K, (num_strengths, 1))
    per_strength = 1 if loss == "softmax" else num_labels
    return Problems(
        strength_P=np.repeat(np.array(strengths, dtype=np.float64), per_strength),
        truth_IC=np.tile(truth.astype(np.float32), num_strengths),
        weight_IC=np.tile(weight_IK.astype(np.float32), num_strengths),
        logits_IC=np.tile(np.broadcast_to(bias_K.astype(np.float32), truth.shape), num_strengths),
        coefficient_PRJ=by_problem(coefficient_SRK),
        curvature_PRJ=by_problem(curvature_SRK),
        mixing_JJ=mixing_JJ,
        null_loss_P=null_SP.ravel(),
        number_P=np.arange(num_strengths * per_strength),
    )


def only(problems: Problems, left_P: NDArray[np.bool_]) -> Problems:
    """The problems that are not done."""
    left_C = np.repeat(left_P, problems.coefficient_PRJ.shape[2])
    return Problems(
        problems.strength_P[left_P],
        problems.truth_IC[:, left_C],
        problems.weight_IC[:, left_C],
        problems.logits_IC[:, left_C],
        problems.coefficient_PRJ[left_P],
        problems.curvature_PRJ[left_P],
        problems.mixing_JJ,
        problems.null_loss_P[left_P],
        problems.number_P[left_P],
    )


def residual(problems: Problems, block: slice, logits_BC: Floats, loss: Loss, columns: int) -> tuple[Floats, Floats]:
    """The loss's derivative, weight · (prediction - truth), and the prediction, (B, C) each."""
    chance_BC = predicted(logits_BC, loss, columns)
    return problems.weight_IC[block] * (chance_BC - problems.truth_IC[block]), chance_BC


def predicted(logits_BC: Floats, loss: Loss, columns: int) -> Floats:
    """What logits say, (B, C): probabilities, of softmax over every so many columns, or numbers."""
    if loss == "softmax":
        shifted_BPJ = logits_BC.reshape(len(logits_BC), -1, columns)
        powers_BPJ = np.exp(shifted_BPJ - shifted_BPJ.max(axis=2, keepdims=True))
        return (powers_BPJ / powers_BPJ.sum(axis=2, keepdims=True)).reshape(logits_BC.shape)
    return 1 / (1 + np.exp(-np.clip(logits_BC, -80, 80))) if loss == "sigmoid" else logits_BC


def gradient(features_ID: F32, basis_DR: Floats, problems: Problems, loss: Loss, blocks: RowBlocks) -> F64:
    """The gradient in the basis, (P, R + 1, J): one product with the features."""
    num_problems, _, columns = problems.coefficient_PRJ.shape

    def one(block: slice) -> Floats:
        residual_BC, _ = residual(problems, block, problems.logits_IC[block], loss, columns)
        return np.concatenate([residual_BC.T @ features_ID[block], residual_BC.sum(axis=0)[:, None]], axis=1)

    sums_CD = blocks.total(one)
    by_basis_CR = np.concatenate([sums_CD[:, :-1].astype(np.float32) @ basis_DR, sums_CD[:, -1:]], axis=1)
    slope_PRJ = by_basis_CR.astype(np.float64).reshape(num_problems, columns, -1).transpose(0, 2, 1).copy()
    slope_PRJ[:, :-1] += problems.coefficient_PRJ[:, :-1] / problems.strength_P[:, None, None]
    return slope_PRJ


def change(features_ID: F32, basis_DR: Floats, direction_PRJ: F64, blocks: RowBlocks) -> F32:
    """What a direction changes in the logits, (I, C): the other product with the features."""
    by_column_RC = direction_PRJ.transpose(1, 0, 2).reshape(direction_PRJ.shape[1], -1).astype(np.float32)
    weight_DC, bias_C = basis_DR @ by_column_RC[:-1], by_column_RC[-1]
    change_IC = np.empty((len(features_ID), len(bias_C)), dtype=np.float32)

    def one(block: slice) -> None:
        np.matmul(features_ID[block], weight_DC, out=change_IC[block])
        change_IC[block] += bias_C

    list(blocks.each(one))
    return change_IC


def along(
    problems: Problems, change_IC: F32, length_P: F64, columns: int, loss: Loss, blocks: RowBlocks
) -> F64:  # fmt: skip
    """First and second derivative of the loss (without the penalty) along the direction, (2, P)."""
    length_C = np.repeat(length_P, columns).astype(np.float32)

    def one(block: slice) -> F64:
        change_BC = change_IC[block]
        logits_BC = problems.logits_IC[block] + length_C * change_BC
        residual_BC, chance_BC = residual(problems, block, logits_BC, loss, columns)
        weighted_BC = problems.weight_IC[block] * change_BC
        first_C = np.einsum("bc,bc->c", residual_BC, change_BC)
        if loss == "softmax":
            mean_BC = chance_BC * change_BC
            second_C = np.einsum("bc,bc->c", mean_BC, weighted_BC)
            mean_BP = mean_BC.reshape(len(mean_BC), -1, columns).sum(axis=2)
            spread_P = np.einsum("bp,bp,bp->p", mean_BP, mean_BP, problems.weight_IC[block][:, ::columns])
            return np.stack([_by_problem(first_C, columns), _by_problem(second_C, columns) - spread_P])
        spread_BC = chance_BC * (1 - chance_BC) * change_BC if loss == "sigmoid" else change_BC
        return np.stack([first_C, np.einsum("bc,bc->c", spread_BC, weighted_BC)]).astype(np.float64)

    return blocks.total(one)


def _by_problem(values_C: Floats, columns: int) -> F64:
    return values_C.astype(np.float64).reshape(-1, columns).sum(axis=1)
