"""Heads fitted by many at once are those that scikit-learn finds one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from finetune import row_blocks
from finetune.row_blocks import standardised
from finetune.solver import fit_heads
from tests.benchmarks import bench_linear

STRENGTHS = [1e-3, 0.1, 5.0]


def drawn(shape: tuple[int, int], num_labels: int, seed: int = 0):
    """Correlated features, as encoders give them, the logits of some labels, and weights."""
    (num_images, num_features), rng = shape, np.random.default_rng(seed)
    turned = np.linalg.qr(rng.normal(size=(num_features, num_features)))[0]
    features = rng.normal(size=(num_images, num_features)) / np.arange(1, num_features + 1) @ turned
    weights = rng.uniform(0.3, 1, num_images)
    features = standardised(features.astype(np.float32), weights)[0]
    logits = features @ rng.normal(size=(num_features, num_labels)) / np.sqrt(num_features / 4)
    return features, logits + rng.normal(size=num_labels) - 1, weights, rng


def scikit_learn(features, truth, weights, strength, **changed):
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000, **changed)
    return model.fit(features.astype(np.float64), truth, sample_weight=weights)


def off(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("shape", [(400, 30), (60, 90)], ids=["more images", "more features"])
def test_labels_that_are_unknown_for_some_images_are_as_if_fitted_alone(shape):
    features, logits, weights, rng = drawn(shape, 4)
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    found = fit_heads(features, truth, weights, "sigmoid", STRENGTHS, 200)
    assert found.converged_S.all()
    for s, strength in enumerate(STRENGTHS):
        for k in range(4):
            known = np.isfinite(truth[:, k])
            model = scikit_learn(features[known], truth[known, k], weights[known], strength)
            assert off(found.weight_SDK[s, :, k], model.coef_[0]) < 5e-3
            assert found.bias_SK[s, k] == pytest.approx(model.intercept_[0], abs=5e-3)


@pytest.mark.parametrize("shape", [(400, 30), (60, 90)], ids=["more images", "more features"])
def test_classes_that_exclude_each_other(shape):
    features, logits, weights, rng = drawn(shape, 4)
    classes = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = fit_heads(features, np.eye(4)[classes], weights, "softmax", STRENGTHS, 200)
    assert found.converged_S.all()
    for s, strength in enumerate(STRENGTHS):
        model = scikit_learn(features, classes, weights, strength)
        assert off(found.weight_SDK[s].T, model.coef_) < 5e-3
        assert found.bias_SK[s] == pytest.approx(model.intercept_ - model.intercept_.mean(), abs=2e-2)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_soft_label_is_as_good_as_an_image_a_class_with_its_share(loss):
    features, logits, weights, _ = drawn((200, 20), 3)
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    found = fit_heads(features, soft if loss == "softmax" else soft[:, :1], weights, loss, [0.5], 200)
    shares = soft if loss == "softmax" else np.stack([1 - soft[:, 0], soft[:, 0]], axis=1)
    classes = np.repeat(np.arange(shares.shape[1]), len(features))
    many = np.tile(features, (shares.shape[1], 1))
    model = scikit_learn(many, classes, (weights[:, None] * shares).T.ravel(), 0.5)
    assert off(found.weight_SDK[0].T, model.coef_) < 5e-3


def test_numbers_are_fitted_as_by_ridge():
    features, values, weights, rng = drawn((300, 40), 2)
    values[rng.random(values.shape) < 0.3] = np.nan
    found = fit_heads(features, values, weights, "squared", STRENGTHS, 200)
    for s, strength in enumerate(STRENGTHS):
        for k in range(2):
            known = np.isfinite(values[:, k])
            model = Ridge(alpha=1 / strength).fit(features[known], values[known, k], sample_weight=weights[known])
            assert off(found.weight_SDK[s, :, k], model.coef_) < 5e-3
            assert found.bias_SK[s, k] == pytest.approx(model.intercept_, abs=2e-3)


def test_a_dozen_steps_are_enough_and_too_few_are_told():
    features, logits, weights, rng = drawn((2000, 60), 5)
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    found = fit_heads(features, truth, weights, "sigmoid", STRENGTHS, 200)
    assert found.converged_S.all() and found.steps <= 14
    assert not fit_heads(features, truth, weights, "sigmoid", STRENGTHS, 2).converged_S.any()


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    features, logits, weights, rng = drawn((5000, 20), 2)
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(row_blocks, "num_cores", lambda number=cores: number)
        found.append(fit_heads(features, truth, weights, "sigmoid", [0.1], 200).weight_SDK)
    assert (found[0] == found[1]).all()


def test_columns_far_from_zero_are_standardised_and_dead_ones_left():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 1, 5000)
    values = (rng.normal(size=(5000, 3)) * [1e-2, 1, 0] + [1000, -3, 7]).astype(np.float32)
    scaled, mean, scale = standardised(values, weights)
    exact = values.astype(np.float64)
    expected = np.average(exact, axis=0, weights=weights)
    deviation = np.sqrt(np.average((exact - expected) ** 2, axis=0, weights=weights))
    assert mean == pytest.approx(expected, rel=1e-7)
    assert scale[:2] == pytest.approx(deviation[:2], rel=1e-4) and scale[2] == 1
    assert scaled[:, :2] == pytest.approx(((exact - expected) / deviation)[:, :2], abs=1e-3)
    assert np.abs(scaled[:, 2]).max() < 1e-5


def test_the_benchmark_compares_the_rarest_and_the_commonest_label(monkeypatch):
    """Where rounding and the intercept weigh most, and where most images decide."""
    fitted = []

    class Recorded(LogisticRegression):
        def fit(self, features, truth):  # type: ignore[override]
            fitted.append(truth.mean())
            return super().fit(features, truth)

    monkeypatch.setattr(bench_linear, "LogisticRegression", Recorded)
    rows = bench_linear.run(2_000, 32)
    shares = bench_linear._drawn(2_000, 32)[1].mean(axis=0)
    assert sorted(fitted) == [shares.min(), shares.max()] and shares.max() > 5 * shares.min()
    assert "rarest and commonest label times 7" in rows[0]["name"]
