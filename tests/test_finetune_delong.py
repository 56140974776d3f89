"""DeLong against a plain restatement over all pairs, a published table, and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from finetune.bootstrap import bootstrap
from finetune.delong import Delong, delong
from finetune.ranking import Ranking


def plain(truth, scores_MN):
    """Every pair of a positive and a negative, as DeLong, DeLong & Clarke-Pearson write it (equations 1 to 5)."""
    positive, negative = scores_MN[:, truth == 1], scores_MN[:, truth == 0]
    kernel = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (positive[:, :, None] == negative[:, None, :])
    by_positive, by_negative = kernel.mean(axis=2), kernel.mean(axis=1)
    auroc = kernel.mean(axis=(1, 2))

    def product(components):
        centred = components - auroc[:, None]
        return centred @ centred.T / (components.shape[1] - 1)

    covariance = product(by_positive) / positive.shape[1] + product(by_negative) / negative.shape[1]
    return auroc, covariance


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_equals_the_plain_restatement_with_ties(data):
    truth = np.array([float(row[0]) for row in data])
    scores = np.array([[row[1], row[2]] for row in data], dtype=float).T
    found = delong(truth, scores)
    if min(truth.sum(), (1 - truth).sum()) < 2:
        assert found is None
        return
    assert found is not None
    auroc, covariance = plain(truth, scores)
    assert found.auroc_M == pytest.approx(auroc, abs=1e-12)
    assert found.covariance_MM == pytest.approx(covariance, abs=1e-12)
    assert found.auroc_M[0] == pytest.approx(roc_auc_score(truth, scores[0]))


def test_the_published_example_of_hanley_and_mcneil():
    """Hanley & McNeil (1982), table I: 58 normal and 51 abnormal CT images, rated 1 to 5.

    AUROC 0.893 by the trapezoidal rule; they give a standard error of 0.032.
    """
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    scores = np.concatenate([np.repeat(range(1, 6), normal), np.repeat(range(1, 6), abnormal)]).astype(float)
    truth = np.repeat([0.0, 1.0], [58, 51])
    found = delong(truth, scores[None])
    assert found is not None
    assert found.auroc_M[0] == pytest.approx(0.893, abs=5e-4)
    assert np.sqrt(found.covariance_MM[0, 0]) == pytest.approx(0.032, abs=1.5e-3)
    low, high = found.interval(0, 0.95) or (1, 0)
    assert low == pytest.approx(0.893 - 1.96 * 0.0307, abs=2e-3)
    assert high == pytest.approx(0.893 + 1.96 * 0.0307, abs=2e-3)


def test_agrees_with_the_bootstrap_where_patients_have_one_score_each():
    rng = np.random.default_rng(0)
    truth = np.repeat([0.0, 1.0], [150, 100])
    scores = truth + rng.normal(0, 1, 250)
    found = delong(truth, scores[None])
    assert found is not None
    ranking = Ranking(truth, scores, np.arange(250), 250)
    values = bootstrap(lambda counts: {("a",): ranking.auroc(counts)}, truth.astype(int), 1000, 0)["a",]
    assert np.sqrt(found.covariance_MM[0, 0]) == pytest.approx(values.std(), rel=0.1)


def test_the_same_model_twice_does_not_differ_and_a_far_better_one_does():
    rng = np.random.default_rng(1)
    truth = np.repeat([0.0, 1.0], 60)
    good, none = truth + rng.normal(0, 0.3, 120), rng.normal(size=120)
    found = delong(truth, np.stack([good, good, none]))
    assert found is not None
    assert found.p_of_difference(0, 1) == 1.0
    p = found.p_of_difference(0, 2)
    assert p is not None and p < 1e-6
    assert p == found.p_of_difference(2, 0)


def test_a_difference_without_variance_has_no_p():
    """Perfect against constant, and a rounding error of a variance that is 0."""
    truth = np.array([1.0, 1, 0, 0])
    found = delong(truth, np.array([[0.9, 0.8, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]]))
    assert found is not None
    assert found.p_of_difference(0, 1) is None
    almost = Delong(np.array([0.9, 0.8]), np.array([[0.02, 0.02 - 1e-18], [0.02 - 1e-18, 0.02]]))
    assert almost.p_of_difference(0, 1) is None


def test_unknown_truth_does_not_count():
    truth, scores = np.array([1, 1, 0, 0, np.nan]), np.array([[0.9, 0.4, 0.5, 0.1, 0.99]])
    found, known = delong(truth, scores), delong(truth[:4], scores[:, :4])
    assert found is not None
    assert known is not None
    assert found.auroc_M[0] == known.auroc_M[0] == 0.75


def test_null_p_values_are_uniform():
    """Two models that are equally good: p falls below any level as often as the level says."""
    from scipy.stats import kstest

    rng = np.random.default_rng(3)
    truth = np.repeat([0.0, 1.0], 60)
    shared = truth + rng.normal(0, 1, (400, 120))
    found = [delong(truth, row + rng.normal(0, 0.7, (2, 120))) for row in shared]
    values = [d.p_of_difference(0, 1) for d in found if d is not None]
    assert kstest(values, "uniform").pvalue > 0.01
