"""Heads that learn a case as a whole from cached features: the largest logit, or attention over its images.

The mean of a case's logits is the logit of its mean features, so a linear head of means has one optimum
(`finetune.solver`). Maximum and attention have none; they begin at that optimum, which for attention is the mean itself
(`finetune.heads.GatedAttention`), and are trained on by Adam. The loss is the solver's: the sum over cases and labels,
and |w|² / 2C of all weights, those of attention included; numbers count by half their squared error.
Shapes: I images, N cases, B a batch of them, D features, K labels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.order import keyed_generator
from finetune.bootstrap import Floats
from finetune.cohort import Cohort, case_auroc
from finetune.heads import Head, pool_cases_of, pool_images
from finetune.linear_head import LinearHead
from finetune.parameters import drawn_by
from finetune.row_blocks import F32
from finetune.tasks import Task

BATCH_CASES, EPOCHS, FEWEST_STEPS, LOOKS = 256, 20, 400, 20
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class CaseImages:
    """Standardised features of the images of some cases, (I, D), and where each case's are: they stand in a row."""

    features_ID: Tensor
    start_N: NDArray[np.int64]
    count_N: NDArray[np.int64]
    truth_NK: Tensor
    weight_N: Tensor

    @classmethod
    def of(cls, cohort: Cohort, scaled_ID: F32, weight_N: Floats) -> "CaseImages":
        """The training cases of a cohort, by ascending number."""
        _, first, count_N = np.unique(cohort.dataset.case_of[cohort.train], return_index=True, return_counts=True)
        order = np.argsort(cohort.dataset.case_of[cohort.train], kind="stable")
        truth_NK = cohort.truth[cohort.train[first]]
        return cls(
            torch.from_numpy(scaled_ID[order]), np.cumsum(count_N) - count_N, count_N,
            torch.from_numpy(np.asarray(truth_NK, dtype=np.float32)),
            torch.from_numpy(np.asarray(weight_N, dtype=np.float32)),
        )  # fmt: skip

    def batch(self, some_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features of the images of some cases, and the place of each image's case in the batch."""
        counts_B = self.count_N[some_B]
        place = np.repeat(np.arange(len(some_B)), counts_B)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
        return self.features_ID[torch.from_numpy(self.start_N[some_B][place] + within)], torch.from_numpy(place)


def train_case_head(
    start: LinearHead, train: CaseImages, cohort: Cohort, scaled_val_ID: F32, strength: float, seed: int
) -> tuple[LinearHead, dict[str, int]]:
    """Train on from a head of standardised features; the best on validation, and after which step it was.

    Of equally good ones the first; the start is one of them. Depends on the seed alone: of attention's fresh weights,
    and of the order of cases.
    """
    num_cases, total_weight = len(train.count_N), float(train.weight_N.sum())
    batch = min(BATCH_CASES, num_cases)
    per_epoch = num_cases // batch
    total = max(EPOCHS * per_epoch, FEWEST_STEPS)
    with drawn_by(seed):
        head = Head(start.weight_KD.shape[1], len(start.weight_KD), start.pooling)
    given = {name: torch.from_numpy(np.array(values, np.float32)) for name, values in start.weights().items()}
    head.load_state_dict(given, strict=False)
    optimizer = torch.optim.Adam(head.parameters())
    best, best_score, best_step = _told(head, start), _score(head, cohort, scaled_val_ID, start), 0
    order = np.empty(0, dtype=np.int64)
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = np.argsort(keyed_generator("case head", seed, epoch).random_raw(num_cases), kind="stable")
        some_B = order[place * batch : (place + 1) * batch]
        features_ID, place_I = train.batch(some_B)
        logits_BK = pool_cases_of(head(features_ID), place_I, batch, start.pooling)
        loss_B = train.weight_N[some_B] * _loss(cohort.task, logits_BK, train.truth_NK[some_B])
        loss = loss_B.mean() * (num_cases / total_weight) + _penalty(head) / (2 * strength * total_weight)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / total))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) * LOOKS // total > step * LOOKS // total:
            score = _score(head, cohort, scaled_val_ID, start)
            if round(score, 9) > round(best_score, 9):
                best, best_score, best_step = _told(head, start), score, step + 1
    return best, {"step": best_step, "of": total}


def _loss(task: Task, logits_BK: Tensor, truth_BK: Tensor) -> Tensor:
    """The solver's loss of each case, (B,), summed over the parts of the task and the labels of each."""
    total_B, first = torch.zeros(len(logits_BK)), 0
    for part in task.parts:
        columns = slice(first, first + len(part.label_names))
        # The tasks take means over labels; softmax has one loss for all of them.
        count = {"multiclass": 1.0, "regression": 0.5 * len(part.label_names)}.get(part.kind, len(part.label_names))
        total_B = total_B + count * part.loss(logits_BK[:, columns], truth_BK[:, columns])
        first = columns.stop
    return total_B


def _penalty(head: Head) -> Tensor:
    weights = [values for name, values in head.named_parameters() if name.endswith("weight")]
    return torch.stack([values.square().sum() for values in weights]).sum()


@torch.no_grad()
def _score(head: Head, cohort: Cohort, scaled_val_ID: F32, start: LinearHead) -> float:
    """The task's score over the validation cases."""
    numbers_IM = head(torch.from_numpy(scaled_val_ID)).numpy()
    logits_IK = pool_images(numbers_IM, cohort.dataset.case_of[cohort.val], start.pooling)
    return case_auroc(cohort, cohort.val, logits_IK)


def _told(head: Head, start: LinearHead) -> LinearHead:
    """A copy of what the head is now."""
    weights = {name: values.detach().numpy().copy() for name, values in head.state_dict().items()}
    attention = {name.removeprefix("attention."): w for name, w in weights.items() if name.startswith("attention.")}
    return LinearHead(weights["weight"], weights["bias"], start.pooling, attention)
