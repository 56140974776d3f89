"""Linear heads fitted to convergence: many labels and many strengths of regularisation at once.

    minimise over w, b:  Σ_i weight_i · loss(x_i · w + b, truth_i) + |w|² / 2C

which is scikit-learn's LogisticRegression (and, for the squared loss, Ridge with alpha = 1/C). L-BFGS (Nocedal &
Wright, 2006, algorithm 7.4) that begins from a curvature close to the true one: every loss here has the Hessian Xᵀ S X
+ 1/C with S diagonal and, before anything is learned, nearly constant in a label. So one eigenbasis of XᵀX serves all
labels and strengths, and a dozen steps do what hundreds do without it. All problems share each product with the
features, and finding how far to go along a direction costs none, since logits are linear in the weights.

The rows are cut into blocks of a fixed size whose sums are added in their order, so that the result does not depend
on the number of cores.
Shapes: I images, B a block of them, D features, R of the basis (+ 1 the bias), K labels, P problems (each with its own
strength), J columns of a problem (K of softmax, else 1), C = P · J columns in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from finetune.bootstrap import Floats
from finetune.head_problems import Loss, Problems, along, begin, change, gradient, only
from finetune.row_blocks import F32, F64, RowBlocks

MEMORY = 20
"""Steps that L-BFGS remembers."""
BASIS_ROWS_PER_FEATURE = 8
"""Rows that the basis is taken from: it only speeds things up, and so many show it well enough."""
SLOPE_LEFT = 0.1
"""A step along a direction ends where so little of the slope is left (the curvature condition)."""
TOLERANCE = 1e-8
"""Done where the objective can fall by no more than this share of the loss without any feature."""


@dataclass(frozen=True)
class Solution:
    """Heads of each strength: logits = features · weight + bias."""

    weight_SDK: F64
    bias_SK: F64
    converged_S: NDArray[np.bool_]
    steps: int


def fit_heads(
    features_ID: F32, truth_IK: Floats, weight_I: Floats, loss: Loss, strengths: Sequence[float], max_steps: int
) -> Solution:
    """Fit every strength (C of scikit-learn) of every label.

    The features should be standardised (their mean is taken to be zero); truth may be soft for softmax and sigmoid, and
    NaN, which leaves that image out of that label (of all labels at once for softmax). No label may be constant.
    """
    num_images, num_labels = truth_IK.shape
    one_each = loss != "softmax"
    with RowBlocks(num_images) as blocks:
        basis_DR, eigenvalue_R = _basis(features_ID, weight_I, blocks)
        problems = begin(truth_IK, weight_I, eigenvalue_R, loss, strengths)
        shape = problems.coefficient_PRJ.shape
        found_PRJ, converged_P = np.zeros(shape), np.zeros(shape[0], dtype=bool)
        steps = _descend(features_ID, basis_DR, problems, loss, max_steps, blocks, found_PRJ, converged_P)
    by_label_SRK = (
        found_PRJ[:, :, 0].reshape(len(strengths), num_labels, -1).transpose(0, 2, 1) if one_each else found_PRJ
    )
    bias_SK = by_label_SRK[:, -1]
    if loss == "softmax":  # a constant more for every label changes nothing
        bias_SK = bias_SK - bias_SK.mean(axis=1, keepdims=True)
    converged_S = np.asarray(converged_P.reshape(len(strengths), -1).all(axis=1))
    return Solution(basis_DR @ by_label_SRK[:, :-1], bias_SK, converged_S, steps)


def _basis(features_ID: F32, weight_I: Floats, blocks: RowBlocks) -> tuple[Floats, F64]:
    """Orthonormal directions (D, R) in which XᵀSX is nearly diagonal, and its values there, (R,).

    With fewer images than features, the weights of a head lie in the span of the images: R is then at most I.
    """
    num_images, num_features = features_ID.shape
    root_I = np.sqrt(weight_I, dtype=np.float64).astype(np.float32)
    if num_images < num_features:
        scaled_ID = features_ID * root_I[:, None]
        value_I, vectors_II = eigh((scaled_ID @ scaled_ID.T).astype(np.float64), driver="evd")
        kept = value_I > 1e-6 * max(value_I[-1], 1e-30)
        basis_DR = scaled_ID.T @ (vectors_II[:, kept] / np.sqrt(value_I[kept])).astype(np.float32)
        return np.asarray(basis_DR, dtype=np.float32), value_I[kept]
    every = max(1, num_images // (BASIS_ROWS_PER_FEATURE * num_features))

    def gram(block: slice) -> Floats:
        rows = slice(block.start + (-block.start) % every, block.stop, every)
        scaled_BD = features_ID[rows] * root_I[rows, None]
        return scaled_BD.T @ scaled_BD

    value_R, basis_DR = eigh(blocks.total(gram).astype(np.float32), driver="evd")  # twice as fast as numpy's
    # What is smaller is rounding
    value_R = np.maximum(value_R, 1e-7 * value_R[-1]).astype(np.float64) * weight_I.sum() / weight_I[::every].sum()
    return basis_DR.astype(np.float32), value_R


def _descend(
    features_ID: F32, basis_DR: Floats, problems: Problems, loss: Loss, max_steps: int, blocks: RowBlocks,
    found_PRJ: F64, converged_P: NDArray[np.bool_],
) -> int:  # fmt: skip
    """L-BFGS on all problems together; each leaves when it is done. Returns the number of steps."""
    slope_PRJ = gradient(features_ID, basis_DR, problems, loss, blocks)
    moves: list[F64] = []
    bends: list[F64] = []
    step = 0
    while True:
        direction_PRJ = _direction(slope_PRJ, moves, bends, problems)
        fall_P = -(slope_PRJ * direction_PRJ).sum(axis=(1, 2))
        done_P = fall_P <= 2 * TOLERANCE * problems.null_loss_P  # half of it is what a Newton step would gain
        if done_P.any() or step == max_steps:
            found_PRJ[problems.number_P] = problems.coefficient_PRJ
            converged_P[problems.number_P[done_P]] = True
            if done_P.all() or step == max_steps:
                return step
            left_P = ~done_P
            problems = only(problems, left_P)
            moves, bends = [move[left_P] for move in moves], [bend[left_P] for bend in bends]
            slope_PRJ, direction_PRJ = slope_PRJ[left_P], direction_PRJ[left_P]
        change_IC = change(features_ID, basis_DR, direction_PRJ, blocks)
        length_P = _step_length(problems, slope_PRJ, direction_PRJ, change_IC, loss, blocks)
        move_PRJ = length_P[:, None, None] * direction_PRJ
        problems.coefficient_PRJ = problems.coefficient_PRJ + move_PRJ
        problems.logits_IC += np.repeat(length_P, direction_PRJ.shape[2]).astype(np.float32) * change_IC
        before_PRJ, slope_PRJ = slope_PRJ, gradient(features_ID, basis_DR, problems, loss, blocks)
        moves, bends = [*moves, move_PRJ][-MEMORY:], [*bends, slope_PRJ - before_PRJ][-MEMORY:]
        step += 1


def _direction(slope_PRJ: F64, moves: list[F64], bends: list[F64], problems: Problems) -> F64:
    """The two loops of L-BFGS, each problem with its own first curvature, scaled to its newest step."""

    def dot(one: F64, other: F64) -> F64:
        return np.einsum("prj,prj->p", one, other)[:, None, None]

    def uncurved(values_PRJ: F64) -> F64:
        return (values_PRJ @ problems.mixing_JJ / problems.curvature_PRJ) @ problems.mixing_JJ.T

    # A step too small for the precision of the slope may seem not to bend: it is passed over.
    bent = [np.maximum(dot(move, bend), 0.0) for move, bend in zip(moves, bends)]
    inverse = [np.divide(1.0, value, out=np.zeros_like(value), where=value > 0) for value in bent]
    rest, shares = slope_PRJ, []
    for move, bend, factor in zip(reversed(moves), reversed(bends), reversed(inverse)):
        shares.append(factor * dot(move, rest))
        rest = rest - shares[-1] * bend
    rest = uncurved(rest)
    if moves:
        stiffness = dot(bends[-1], uncurved(bends[-1]))
        rest *= np.divide(bent[-1], stiffness, out=np.ones_like(stiffness), where=bent[-1] > 0)
    for move, bend, factor, share in zip(moves, bends, inverse, reversed(shares)):
        rest += (share - factor * dot(bend, rest)) * move
    return -rest


def _step_length(
    problems: Problems, slope_PRJ: F64, direction_PRJ: F64, change_IC: F32, loss: Loss, blocks: RowBlocks
) -> F64:
    """How far each problem goes along its direction: Newton's method in one dimension, kept within a bracket."""
    first_P = (slope_PRJ * direction_PRJ).sum(axis=(1, 2))
    pull_P = (problems.coefficient_PRJ[:, :-1] * direction_PRJ[:, :-1]).sum(axis=(1, 2)) / problems.strength_P
    stiff_P = (direction_PRJ[:, :-1] ** 2).sum(axis=(1, 2)) / problems.strength_P
    low_P, high_P, length_P = np.zeros_like(first_P), np.full_like(first_P, np.inf), np.ones_like(first_P)
    columns = direction_PRJ.shape[2]
    for _ in range(12):
        slope_2P = along(problems, change_IC, length_P, columns, loss, blocks)
        slope_P, bend_P = slope_2P[0] + pull_P + length_P * stiff_P, slope_2P[1] + stiff_P
        if (np.abs(slope_P) <= SLOPE_LEFT * np.abs(first_P)).all():
            break
        low_P, high_P = np.where(slope_P < 0, length_P, low_P), np.where(slope_P < 0, high_P, length_P)
        next_P = length_P - slope_P / np.maximum(bend_P, 1e-30)
        middle_P = np.where(np.isfinite(high_P), (low_P + high_P) / 2, 4 * length_P)
        inside_P = (next_P > low_P) & (next_P < np.minimum(high_P, 4 * length_P))
        length_P = np.where(inside_P, next_P, middle_P)
    return length_P
