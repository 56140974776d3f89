"""Scores of foreign images against plain restatements, and on images that are foreign by construction."""

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from finetune.bootstrap import BootstrapConfig
from finetune.ood import Reference, energy, told_apart


def test_energy_equals_its_definition_and_takes_sure_negatives_for_familiar():
    logits = np.random.default_rng(0).normal(0, 3, (20, 4))
    assert energy(logits, True) == pytest.approx(-logsumexp(logits, axis=1))
    assert energy(logits, False) == pytest.approx(-np.log1p(np.exp(logits)).sum(axis=1))
    single = energy(np.array([[-8.0], [8.0], [0.1]]), False)
    assert single[0] == pytest.approx(single[1])
    assert single[2] > single[0]
    assert np.isfinite(energy(np.array([[-1e4, 900.0]]), True)).all()


def test_neighbours_and_mahalanobis_equal_plain_restatements():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 4 * np.eye(6)[classes]
    asked = rng.normal(size=(50, 6)) * 3
    reference = Reference(features, classes)

    def unit(values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    distances, _ = NearestNeighbors(n_neighbors=4).fit(unit(features)).kneighbors(unit(asked))
    assert reference.knn(asked) == pytest.approx(distances[:, 3], abs=1e-3)

    means = np.stack([features[classes == c].mean(axis=0) for c in range(3)])
    centred = features - means[classes]
    plain = LedoitWolf(assume_centered=True).fit(centred).covariance_
    expected = np.min(
        [np.einsum("id,de,ie->i", asked - mean, np.linalg.inv(plain), asked - mean) for mean in means], axis=0
    )
    assert reference.mahalanobis(asked) == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_will_do():
    rng = np.random.default_rng(2)
    reference = Reference(rng.normal(size=(12, 40)), np.zeros(12, dtype=int))
    familiar, foreign = rng.normal(size=(30, 40)), rng.normal(size=(30, 40)) + 5
    assert reference.mahalanobis(foreign).min() > reference.mahalanobis(familiar).max()
    assert np.isfinite(reference.knn(np.zeros((1, 40)))).all()


def test_foreign_cases_are_told_from_known_ones_with_an_interval():
    rng = np.random.default_rng(3)
    known, foreign = rng.normal(size=80), rng.normal(size=60) + 1.5
    config = BootstrapConfig(resamples=200)
    found = told_apart(known, np.arange(80) // 2, foreign, 100 + np.arange(60) // 2, config, 0)
    truth, scores = np.repeat([0, 1], [80, 60]), np.concatenate([known, foreign])
    assert found["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert 0.7 < found["low"] < found["value"] < found["high"] < 1
    nobody = told_apart(known, np.arange(80), foreign[:0], np.arange(0), config, 0)
    assert nobody["value"] is None
