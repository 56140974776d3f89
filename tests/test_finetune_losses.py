"""Each loss against a plain restatement of its paper, one number at a time in float64, and its gradient."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.full_config import FullConfig, LossConfig
from finetune.losses import LabelLoss, TwoHeadsLoss, class_balance, m3ce, supervised_contrastive
from finetune.regression import Regression
from finetune.tasks import MultiLabel

NUM, CLASSES = 7, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGITS, WEIGHT = drawn(NUM, CLASSES), drawn(NUM, seed=1).exp()
HARD = torch.eye(CLASSES, dtype=torch.float64)[torch.tensor([0, 3, 1, 1, 2, 0, 3])]
SOFT = drawn(NUM, CLASSES, seed=2).softmax(1)
LABELS = (drawn(NUM, CLASSES, seed=3) > 0).double()
MASKED = LABELS.clone()
MASKED[0, 1] = MASKED[4, :] = MASKED[5, 2] = torch.nan


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def mean(losses: Sequence[float], weights: Tensor) -> float:
    return sum(x * float(w) for x, w in zip(losses, weights)) / float(weights.sum())


def loss_of(kind: str, **config: float) -> LabelLoss:
    return LabelLoss(LossConfig.model_validate(config), kind)


def check_gradient(loss: LabelLoss, truth: Tensor) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, truth, WEIGHT), (logits,))


@pytest.mark.parametrize("truth", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_cross_entropy_and_label_smoothing(truth: Tensor, share: float) -> None:
    loss = loss_of("multiclass", label_smoothing=share)
    plain = [
        -sum(((1 - share) * q + share / CLASSES) * math.log(p) for q, p in zip(of, softmax(row)))
        for of, row in zip(truth.tolist(), LOGITS.tolist())
    ]
    assert float(loss(LOGITS, truth, WEIGHT)) == pytest.approx(mean(plain, WEIGHT), rel=1e-12)
    check_gradient(loss, truth)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_classes_and_of_labels(gamma: float) -> None:
    rows = zip(HARD.argmax(1).tolist(), LOGITS.tolist())
    plain = [-((1 - softmax(row)[k]) ** gamma) * math.log(softmax(row)[k]) for k, row in rows]
    of_classes = loss_of("multiclass", focal_gamma=gamma)
    assert float(of_classes(LOGITS, HARD, WEIGHT)) == pytest.approx(mean(plain, WEIGHT), rel=1e-12)
    check_gradient(of_classes, HARD)

    def of_label(z: float, y: float) -> float:
        p_t = sigmoid(z) if y == 1 else 1 - sigmoid(z)
        return -((1 - p_t) ** gamma) * math.log(p_t)

    rows = zip(LOGITS.tolist(), LABELS.tolist())
    plain = [sum(of_label(z, y) for z, y in zip(row, of)) / CLASSES for row, of in rows]
    of_labels = loss_of("multilabel", focal_gamma=gamma)
    assert float(of_labels(LOGITS, LABELS, WEIGHT)) == pytest.approx(mean(plain, WEIGHT), rel=1e-12)
    check_gradient(of_labels, LABELS)


def test_focal_loss_stays_finite_where_the_answer_is_certain() -> None:
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    loss = loss_of("multiclass", focal_gamma=0.5)(logits, torch.tensor([[1.0, 0.0]] * 2), torch.ones(2))
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(loss.detach()) == pytest.approx(80, rel=1e-5)


def test_masked_binary_cross_entropy_is_the_mean_over_known_labels() -> None:
    total, weights = 0.0, 0.0
    for row, of, weight in zip(LOGITS.tolist(), MASKED.tolist(), WEIGHT.tolist()):
        for z, y in zip(row, of):
            if not math.isnan(y):
                total -= weight * (y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z)))
                weights += weight
    loss = loss_of("multilabel")
    assert float(loss(LOGITS, MASKED, WEIGHT)) == pytest.approx(total / weights, rel=1e-12)
    check_gradient(loss, MASKED)
    logits = LOGITS.clone().requires_grad_()
    loss(logits, MASKED, WEIGHT).backward()
    assert logits.grad is not None
    assert ((logits.grad == 0) == MASKED.isnan()).all()


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel"])
def test_a_batch_of_which_nothing_is_known_costs_nothing(kind: str) -> None:
    width = 1 if kind == "binary" else CLASSES
    logits = LOGITS[:, :width].clone().requires_grad_()
    loss = loss_of(kind)(logits, torch.full((NUM, width), torch.nan), WEIGHT)
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_an_image_without_a_class_is_left_out() -> None:
    truth = HARD.clone()
    truth[2] = torch.nan
    some = torch.arange(NUM) != 2
    loss = loss_of("multiclass")
    assert float(loss(LOGITS, truth, WEIGHT)) == pytest.approx(
        float(loss(LOGITS[some], HARD[some], WEIGHT[some])), rel=1e-12
    )


def test_class_balance_is_by_the_effective_number_of_cases() -> None:
    beta, counts = 0.9, [2, 2, 1, 2]
    factors = [(1 - beta) / (1 - beta**n) for n in counts]
    factors = [f * CLASSES / sum(factors) for f in factors]
    balance = class_balance(HARD.numpy(), np.ones(NUM), "multiclass", beta)
    assert balance.tolist()[0] == pytest.approx(factors, rel=1e-6)
    loss = LabelLoss(LossConfig(class_balanced_beta=beta), "multiclass", balance.double())
    rows = zip(HARD.argmax(1).tolist(), LOGITS.tolist())
    plain = [-factors[k] * math.log(softmax(row)[k]) for k, row in rows]
    assert float(loss(LOGITS, HARD, WEIGHT)) == pytest.approx(mean(plain, WEIGHT), rel=1e-6)
    # Of each label its own two numbers, unknown ones not counted; photographs of one case count as one together.
    balance = class_balance(MASKED.numpy(), np.full(NUM, 0.5), "multilabel", beta)
    for k in range(CLASSES):
        n = [max(1.0, 0.5 * float((MASKED[:, k] == side).sum())) for side in (0, 1)]
        plain = [(1 - beta) / (1 - beta**count) for count in n]
        assert balance.tolist()[k] == pytest.approx([2 * f / sum(plain) for f in plain], rel=1e-6)


def plain_m3ce(row: list[float], truth: list[float], weight: float, margin: float, eta: float) -> float:
    total = 0.0
    for k, q in enumerate(truth):
        rivals = [math.exp(eta * z) for j, z in enumerate(row) if j != k]
        lag = -row[k] + math.log(sum(rivals) / len(rivals)) / eta
        total += q * (-math.log(softmax(row)[k]) + weight * max(0.0, margin + lag))
    return total


@pytest.mark.parametrize("truth", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("eta", [0.5, 5.0])
def test_m3ce_against_a_plain_restatement_and_its_gradient_against_autograd(truth: Tensor, eta: float) -> None:
    settings = (0.7, 1.0, eta)
    plain = [plain_m3ce(row, of, *settings) for row, of in zip(LOGITS.tolist(), truth.tolist())]
    assert m3ce(LOGITS, truth, *settings).tolist() == pytest.approx(plain, rel=1e-12)
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: m3ce(z, truth, *settings), (logits,))

    # The same formula by torch's own differentiation
    own = LOGITS.clone().requires_grad_()
    apart = own[:, None].expand(-1, CLASSES, -1).masked_fill(torch.eye(CLASSES, dtype=torch.bool), -torch.inf)
    lag = ((eta * apart).logsumexp(2) - math.log(CLASSES - 1)) / eta - own
    (truth * (-own.log_softmax(1) + 0.7 * (1 + lag).relu())).sum(1).mul(WEIGHT).sum().backward()
    m3ce(logits, truth, *settings).mul(WEIGHT).sum().backward()
    torch.testing.assert_close(logits.grad, own.grad, rtol=1e-12, atol=1e-14)


def test_m3ce_is_cross_entropy_once_every_class_leads_by_the_margin() -> None:
    sure = 9 * HARD
    config = {"m3ce_weight": 2.0, "m3ce_margin": 1.0}
    torch.testing.assert_close(
        loss_of("multiclass", **config)(sure, HARD, WEIGHT), loss_of("multiclass")(sure, HARD, WEIGHT)
    )
    wrong = loss_of("multiclass", **config)(-sure, HARD, WEIGHT) - loss_of("multiclass")(-sure, HARD, WEIGHT)
    assert float(wrong) == pytest.approx(2 * (1 + 9), rel=1e-12)


def test_m3ce_of_a_label_is_that_of_two_classes() -> None:
    plain = [
        sum(plain_m3ce([0.0, z], [1 - y, y], 1.0, 1.0, 5.0) for z, y in zip(row, of)) / CLASSES
        for row, of in zip(LOGITS.tolist(), LABELS.tolist())
    ]
    loss = loss_of("multilabel", m3ce_weight=1.0)
    assert float(loss(LOGITS, LABELS, WEIGHT)) == pytest.approx(mean(plain, WEIGHT), rel=1e-12)
    check_gradient(loss, MASKED)


def test_supervised_contrastive_against_a_plain_restatement() -> None:
    rows, classes, temperature = drawn(8, 5), [0, 1, 0, 2, 1, 0, -1, 3], 0.3
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]

    def similar(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(unit[i], unit[j])) / temperature)

    known = [i for i, k in enumerate(classes) if k >= 0]
    losses = []
    for i in known:
        others = [a for a in known if a != i]
        positives = [p for p in others if classes[p] == classes[i]]
        if positives:
            under = sum(similar(i, a) for a in others)
            losses.append(-sum(math.log(similar(i, p) / under) for p in positives) / len(positives))
    ours = supervised_contrastive(rows, torch.tensor(classes), temperature)
    assert len(losses) == 5
    assert float(ours) == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    leaf = rows.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: supervised_contrastive(r, torch.tensor(classes), temperature), (leaf,))


def test_a_batch_without_positives_has_nothing_to_contrast() -> None:
    rows = drawn(3, 5).requires_grad_()
    loss = supervised_contrastive(rows, torch.tensor([0, 1, -1]), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and rows.grad is not None and (rows.grad == 0).all()


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="M3CE is built on plain cross-entropy"):
        LossConfig(m3ce_weight=1, focal_gamma=2)
    with pytest.raises(ValueError, match="a mixed image has no one class"):
        FullConfig.model_validate({"loss": {"supcon_weight": 0.5}, "augmentation": {"mixup": 0.2}})


def test_two_heads_weigh_their_losses_as_learned() -> None:
    numbers = Regression(["ejection"], [50.0], [10.0])
    loss = TwoHeadsLoss(loss_of("multilabel"), MultiLabel([*"abc"]), numbers).double()
    with torch.no_grad():
        loss.weights.scale_T.copy_(torch.tensor([0.5, 2.0]))
    truth = torch.cat([MASKED[:, :3], 50 + 10 * drawn(NUM, 1, seed=5)], dim=1)
    truth[1, 3] = torch.nan
    plain = []
    for row, of in zip(LOGITS.tolist(), truth.tolist()):
        known = [(z, y) for z, y in zip(row[:3], of[:3]) if not math.isnan(y)]
        of_labels = -sum(math.log(sigmoid(z) if y == 1 else 1 - sigmoid(z)) for z, y in known) / 3
        of_number = 0.0 if math.isnan(of[3]) else (row[3] - (of[3] - 50) / 10) ** 2
        plain.append(of_labels / (2 * 0.25) + math.log(1.25) + of_number / (2 * 4) + math.log(5))
    assert float(loss(LOGITS, truth, WEIGHT).detach()) == pytest.approx(mean(plain, WEIGHT), rel=1e-5)
