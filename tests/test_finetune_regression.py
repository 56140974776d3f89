import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from finetune.bootstrap import draw_patients
from finetune.regression import NumberFigures, Regression, ScoredNumbers
from finetune.task_weights import LearnedTaskWeights
from finetune.tasks import Binary, MultiClass
from finetune.two_heads import TwoHeads


def numbers(truth: np.ndarray, predicted: np.ndarray, patients: np.ndarray) -> NumberFigures:
    return NumberFigures(ScoredNumbers(truth[:, None], predicted[:, None], patients, ("EF",)))


@given(st.integers(2, 30), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_figures_of_a_resample_are_those_of_the_cases_written_out(num: int, seed: int, tied: bool):
    """Against scipy and scikit-learn, each case repeated as often as its patient was drawn."""
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(num), rng.integers(0, num, num)])
    truth = rng.normal(55, 12, len(patients))
    predicted = truth + rng.normal(0, 8, len(patients))
    if tied:
        truth, predicted = truth.round(-1), predicted.round(-1)
    counts = draw_patients(np.zeros(num, dtype=int), 3, "test", seed)
    found = numbers(truth, predicted, patients)(counts)
    for r in range(3):
        again = np.repeat(np.arange(len(patients)), counts[patients, r].astype(int))
        t, p = truth[again], predicted[again]
        assert found["mae", "EF"][r] == pytest.approx(mean_absolute_error(t, p))
        assert found["rmse", "EF"][r] == pytest.approx(root_mean_squared_error(t, p))
        varies = len(set(t)) > 1 and len(set(p)) > 1
        for name, theirs in (("pearson", pearsonr), ("spearman", spearmanr)):
            expected = theirs(t, p)[0] if varies else np.nan
            assert found[name, "EF"][r] == pytest.approx(expected, abs=1e-7, nan_ok=True)


def test_a_number_that_does_not_vary_has_no_correlation():
    found = numbers(np.array([40.0, 50, 60]), np.full(3, 0.1), np.arange(3))(np.ones((3, 1), dtype=np.float32))
    assert np.isnan(found["pearson", "EF"][0]) and np.isnan(found["spearman", "EF"][0])
    assert found["mae", "EF"][0] == pytest.approx(49.9)


def test_numbers_are_learned_on_the_scale_of_training_and_told_in_their_units():
    truth = np.array([[40.0, np.nan], [60.0, 100.0], [np.nan, 140.0]])
    task = Regression(["EF", "EDV"]).fitted(truth)
    assert task.mean_K.tolist() == [50.0, 120.0] and task.scale_K.tolist() == [10.0, 20.0]
    assert task.probabilities(np.array([[-1.0, 0.5]])).tolist() == [[40.0, 130.0]]
    logits = torch.zeros(3, 2, requires_grad=True)
    losses = task.loss(logits, torch.from_numpy(truth))
    losses.sum().backward()
    # At the mean each number is one deviation off; half a loss where one of the two is unknown, and no gradient.
    assert losses.tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]]))
    known = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0]])
    guess = np.array([[1.5, 2.0], [2.0, 2.0], [2.0, 4.0]])
    assert Regression(["a", "b"]).score(known, guess) == pytest.approx(r2_score(known, guess))


def test_two_heads_keep_their_columns_apart():
    task = TwoHeads(MultiClass(["a", "b"]), Regression(["EF"], [50.0], [10.0]))
    truth = np.array([[0.0, 1.0, 60.0], [1.0, 0.0, np.nan], [np.nan, np.nan, 40.0]])
    assert task.usable(truth, training=True).tolist() == [True, True, True]
    assert task.usable(truth, training=False).tolist() == [True, False, False]
    scores = task.probabilities(np.array([[0.0, 0.0, 1.0]]))
    assert scores.tolist() == [[0.5, 0.5, 60.0]]
    losses = task.loss(torch.zeros(3, 3), torch.from_numpy(truth))
    assert losses.numpy() == pytest.approx(np.array([[np.log(2), 1.0], [np.log(2), 0.0], [0.0, 1.0]]))


def test_the_score_of_two_heads_is_the_mean_of_theirs():
    task = TwoHeads(Binary(["x"]), Regression(["EF"]))
    truth = np.array([[0.0, 40.0], [1.0, 60.0], [1.0, 50.0]])
    scores = np.array([[0.4, 45.0], [0.9, 60.0], [0.2, 50.0]])
    assert task.score(truth, scores) == pytest.approx((0.5 + 1 - 25 / 200) / 2)


def test_task_weights_are_those_of_liebel_and_korner():
    weights = LearnedTaskWeights(2)
    losses = torch.tensor([[0.2, 4.0], [0.6, 2.0]])
    with torch.no_grad():
        weights.scale_T.copy_(torch.tensor([0.5, 2.0]))
    mean = losses.mean(dim=0)
    expected = sum(float(mean[t]) / (2 * c**2) + np.log(1 + c**2) for t, c in enumerate((0.5, 2.0)))
    assert weights(losses).mean().item() == pytest.approx(expected)
    weights(losses).mean().backward()
    # d/dc of L / (2 c²) + ln(1 + c²) is -L / c³ + 2 c / (1 + c²)
    derivative = [-float(mean[t]) / c**3 + 2 * c / (1 + c**2) for t, c in enumerate((0.5, 2.0))]
    assert weights.scale_T.grad is not None
    assert weights.scale_T.grad.tolist() == pytest.approx(derivative)


def test_a_task_with_larger_losses_comes_to_count_less():
    weights = LearnedTaskWeights(2)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.2)
    for _ in range(80):
        optimizer.zero_grad()
        weights(torch.tensor([[0.1, 10.0]])).mean().backward()
        optimizer.step()
    small, large = weights.scale_T.abs().tolist()
    assert small < 1 < large
    # Where the derivative is zero: L (1 + c²) = 2 c⁴
    for loss, c in ((0.1, small), (10.0, large)):
        assert loss * (1 + c**2) == pytest.approx(2 * c**4, rel=1e-3)
