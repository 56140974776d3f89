"""Losses of labels: cross-entropy in its many forms, over the global batch.

A label of yes and no is a choice between two classes with logits 0 and z, whose softmax is the sigmoid of z. So each
loss is written once, for rows that choose among C classes: a multi-class image is one such row, a multi-label image is
one for each label, and a label that is not known (NaN) is left out.

Shapes: B images (or cases) on this rank, K labels, L rows of an image (1 or K), C classes of a row (K or 2),
R = W·B rows of all ranks, D features.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clusters import distributed
from finetune.full_config import LossConfig
from finetune.tasks import Task

ONE_OF_SEVERAL = "multiclass"
LABEL_KINDS = (ONE_OF_SEVERAL, "binary", "multilabel")
Floats = NDArray[np.floating[Any]]


class LabelLoss(nn.Module):
    """`loss(logits_BK, truth_BK, weight_B)`: the weighted mean over the known labels of the global batch.

    Truth is 0, 1 or soft in between; NaN is left out (for one class of several, the whole image). Averaged over ranks,
    as data-parallel training averages gradients, it is the loss of one process with the whole batch.
    `balance_LC` are factors for each class of each row, see `class_balance`.
    """

    def __init__(self, config: LossConfig, kind: str, balance_LC: Tensor | None = None) -> None:
        super().__init__()
        assert kind in LABEL_KINDS
        self.config, self.kind = config, kind
        self.balance_LC: Tensor | None
        self.register_buffer("balance_LC", balance_LC, persistent=False)

    def forward(self, logits_BK: Tensor, truth_BK: Tensor, weight_B: Tensor) -> Tensor:
        """The loss, a scalar."""
        losses_BL, known_BL = self.of_rows(logits_BK, truth_BK)
        return mean_over_ranks(losses_BL, weight_B[:, None] * known_BL)

    def of_rows(self, logits_BK: Tensor, truth_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each row (B, L), and which rows are known."""
        if logits_BK.dtype in (torch.float16, torch.bfloat16):
            logits_BK = logits_BK.float()
        logits_BLC, truth_BLC = as_choices(logits_BK, truth_BK.to(logits_BK.dtype), self.kind)
        known_BL = truth_BLC.isfinite().all(-1)
        truth_BLC = torch.where(known_BL[..., None], truth_BLC, 1 / truth_BLC.shape[-1])
        losses_BL = self._losses(logits_BLC, truth_BLC)
        if self.balance_LC is not None:
            losses_BL = losses_BL * (self.balance_LC * truth_BLC).sum(-1)
        return losses_BL, known_BL

    def _losses(self, logits_BLC: Tensor, truth_BLC: Tensor) -> Tensor:
        config = self.config
        truth_BLC = smoothed(truth_BLC, config.label_smoothing)
        if config.m3ce_weight:
            return m3ce(logits_BLC, truth_BLC, config.m3ce_weight, config.m3ce_margin, config.m3ce_eta)
        return focal(logits_BLC, truth_BLC, config.focal_gamma)


class TwoHeadsLoss(nn.Module):
    """Labels and numbers beside each other, each part's loss by a weight that is learned along with all else.

    Of an image, what is not known adds nothing to its part's loss.
    """

    def __init__(self, labels: LabelLoss, label_task: Task, number_task: Task) -> None:
        super().__init__()
        from finetune.task_weights import LearnedTaskWeights

        self.labels, self.number_task = labels, number_task
        self.num_labels = len(label_task.label_names)
        self.weights = LearnedTaskWeights(2)

    def forward(self, logits_BK: Tensor, truth_BK: Tensor, weight_B: Tensor) -> Tensor:
        """The loss, a scalar."""
        (label_logits, number_logits), (labels, numbers) = (
            (values[:, : self.num_labels], values[:, self.num_labels :]) for values in (logits_BK, truth_BK)
        )
        losses_BL, known_BL = self.labels.of_rows(label_logits, labels)
        of_numbers_B = self.number_task.loss(number_logits, numbers)
        return mean_over_ranks(self.weights(torch.stack([(losses_BL * known_BL).mean(1), of_numbers_B], 1)), weight_B)


def as_choices(logits_BK: Tensor, truth_BK: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Logits and truth as rows that choose among classes, (B, L, C) each."""
    if kind == ONE_OF_SEVERAL:
        return logits_BK[:, None], truth_BK[:, None]
    logits_BKC = torch.stack([torch.zeros_like(logits_BK), logits_BK], dim=-1)
    return logits_BKC, torch.stack([1 - truth_BK, truth_BK], dim=-1)


def smoothed(truth_C: Tensor, share: float) -> Tensor:
    """A share of the truth spread evenly over all classes (Szegedy et al., 2016, section 7); shape (…, C)."""
    return (1 - share) * truth_C + share / truth_C.shape[-1] if share else truth_C


def focal(logits_C: Tensor, truth_C: Tensor, gamma: float) -> Tensor:
    """-Σ q (1 - p)^γ log p: focal loss (Lin et al., 2017, eq. 4), cross-entropy for γ = 0; (…, C) to (…)."""
    log_p = F.log_softmax(logits_C, dim=-1)
    # By way of the logarithm: (1 - p)^γ itself has no finite gradient where p rounds to 1 and γ < 1.
    easy = torch.exp(gamma * _log_of_rest(log_p)) if gamma else 1.0
    return -(truth_C * easy * log_p).sum(-1)


def _log_of_rest(log_p: Tensor) -> Tensor:
    """log(1 - p), of p below 1 by a rounding error at least."""
    return torch.log1p(-log_p.exp().clamp(max=1 - torch.finfo(log_p.dtype).eps))


def m3ce(logits_C: Tensor, truth_C: Tensor, weight: float, margin: float, eta: float) -> Tensor:
    """Cross-entropy plus `weight` times the max-margin minimum-classification-error term; (…, C) to (…).

    Xin & Wang, 2019 (EURASIP Journal on Image and Video Processing, 40), on the misclassification measure of Juang &
    Katagiri, 1992 (eq. 15). For log-posteriors, of which the softmax's normaliser cancels, it is

        d_k = -z_k + 1/η · log[1/(C - 1) · Σ_{j≠k} exp(η z_j)],

    how far class k lags behind its rivals, the strongest alone for large η. In place of MCE's sigmoid, which hardly
    moves what is badly wrong, stands the hinge max(0, margin + d_k): a row costs until its class leads by the margin.
    Of soft truth, the classes' terms count by their shares. Only the paper's abstract was at hand: that the hinge is
    taken of the logits, and the constants, are our reading of "max-margin".
    """
    return _M3CE.apply(logits_C, truth_C, weight, margin, eta)  # type: ignore[no-any-return]


class _M3CE(torch.autograd.Function):
    """With p the softmax and s_kj = exp(η z_j) / Σ_{i≠k} exp(η z_i), zero for j = k, the gradient by z_j is

    p_j Σ_k q_k - q_j + weight · Σ_k q_k [margin + d_k > 0] (s_kj - [j = k]).
    """

    @staticmethod
    def forward(ctx: Any, logits_C: Tensor, truth_C: Tensor, weight: float, margin: float, eta: float) -> Tensor:
        num_classes = logits_C.shape[-1]
        log_p_C = F.log_softmax(logits_C, dim=-1)
        itself = torch.eye(num_classes, dtype=torch.bool, device=logits_C.device)
        rivals_CC = (eta * logits_C)[..., None, :].masked_fill(itself, -torch.inf)
        mean_rival_C = (rivals_CC.logsumexp(-1) - np.log(num_classes - 1)) / eta
        lag_C = margin + mean_rival_C - logits_C
        active_C = truth_C * (lag_C > 0)
        pull_C = (active_C[..., None] * rivals_CC.softmax(-1)).sum(-2) - active_C
        cross_entropy_C = log_p_C.exp() * truth_C.sum(-1, keepdim=True) - truth_C
        ctx.save_for_backward(cross_entropy_C + weight * pull_C)
        return (truth_C * (weight * lag_C.clamp(min=0) - log_p_C)).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (by_logits_C,) = ctx.saved_tensors
        return gradients[0][..., None] * by_logits_C, None, None, None, None


def class_balance(truth_IK: Floats, weight_I: Floats, kind: str, beta: float) -> Tensor:
    """Factors (L, C) by the effective number of cases (Cui et al., 2019, eq. 2 and section 4).

    A class of n cases gets (1 - β) / (1 - βⁿ), scaled so that a row's factors sum to C. `weight_I` sums to the number
    of cases; soft truth counts by its share. A class without a case counts as one of a single case.
    """
    _, choices_ILC = as_choices(torch.zeros(truth_IK.shape), torch.from_numpy(np.asarray(truth_IK, np.float64)), kind)
    counts_LC = (choices_ILC.nan_to_num() * torch.from_numpy(np.asarray(weight_I))[:, None, None]).sum(0).clamp(min=1)
    factors_LC = (1 - beta) / (1 - beta**counts_LC)
    return (factors_LC * factors_LC.shape[1] / factors_LC.sum(1, keepdim=True)).float()


def supervised_contrastive(rows_BD: Tensor, class_B: Tensor, temperature: float) -> Tensor:
    """Khosla et al., 2020, eq. 2 (the sum over positives outside the logarithm), over the global batch.

    Rows are normalised here. Positives of a row are the other rows of its class; a row without any is no anchor, one
    of class -1 (not known) takes no part. The mean over the anchors of all ranks, scaled as in `LabelLoss`.
    """
    with torch.autocast(rows_BD.device.type, enabled=False):
        rows_BD = F.normalize(rows_BD if rows_BD.dtype == torch.float64 else rows_BD.float(), dim=1)
        all_RD, class_R = distributed.gather_with_gradient(rows_BD), distributed.gather(class_B)
        similar_BR = rows_BD @ all_RD.T / temperature
        own = distributed.rank() * len(rows_BD) + torch.arange(len(rows_BD), device=rows_BD.device)
        other_BR = (class_R >= 0).repeat(len(rows_BD), 1)
        other_BR[torch.arange(len(own)), own] = False
        positive_BR = other_BR & (class_B[:, None] == class_R)
        # Large and negative rather than -inf: a row that nobody is compared with would become NaN.
        log_p_BR = similar_BR - similar_BR.masked_fill(~other_BR, -1e9).logsumexp(1, keepdim=True)
        count_B = positive_BR.sum(1)
        losses_B = -(log_p_BR * positive_BR).sum(1) / count_B.clamp(min=1)
        return mean_over_ranks(losses_B, (count_B > 0).to(losses_B.dtype))


def mean_over_ranks(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over all ranks, as a loss whose mean over ranks has its value and gradient; 0 of nothing."""
    total = distributed.sum_over_ranks(weights.sum())
    return (losses * weights).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny) * distributed.world_size()
