"""A linear head for 14 findings on cached features, to convergence, against scikit-learn's LogisticRegression.

Features with the falling spectrum that encoders give, findings that 1 to 40 % of the images have. Both are given the
same standardised float32 features and the same strength; the peer fits one label after another with its defaults, as
many iterations as it asks for, and all cores. It is timed on two of the labels, the rarest and the commonest, and
scaled to all; AUROC is compared on these two.
"""

import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from finetune.row_blocks import standardised
from finetune.solver import fit_heads

NUM_LABELS, STRENGTH = 14, 0.01
STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]


def run(num_images: int = 100_000, num_features: int = 2048) -> list[dict]:
    """Seconds at one strength, and for all six that a recipe tries, the peer's times six."""
    features, truth, new_features, new_truth = _drawn(num_images, num_features)
    ones = np.ones(num_images)

    started = time.perf_counter()
    one = fit_heads(features, truth, ones, "sigmoid", [STRENGTH], 500)
    ours_one = time.perf_counter() - started
    started = time.perf_counter()
    six = fit_heads(features, truth, ones, "sigmoid", STRENGTHS, 500)
    ours_six = time.perf_counter() - started
    assert one.converged_S.all() and six.converged_S.all()

    shares = truth.mean(axis=0)
    compared = int(shares.argmin()), int(shares.argmax())
    started = time.perf_counter()
    models = [LogisticRegression(C=STRENGTH, max_iter=10_000).fit(features, truth[:, k]) for k in compared]
    peer = (time.perf_counter() - started) * NUM_LABELS / len(compared)
    scores = new_features @ one.weight_SDK[0] + one.bias_SK[0]
    for k, model in zip(compared, models):
        ours, theirs = (
            roc_auc_score(new_truth[:, k], s) for s in (scores[:, k], model.decision_function(new_features))
        )
        assert ours >= theirs - 5e-4, (ours, theirs)
    what = f"linear head, {num_images} x {num_features}, {NUM_LABELS} labels"
    told = f"peer scikit-learn's rarest and commonest label times {NUM_LABELS // len(compared)}"
    return [
        _row(f"{what}, to convergence at equal AUROC; {told}", ours_one, peer),
        _row(f"{what}, {len(STRENGTHS)} strengths; peer's one times {len(STRENGTHS)}", ours_six, peer * len(STRENGTHS)),
    ]


def _drawn(num_images: int, num_features: int) -> tuple[np.ndarray, ...]:
    """Standardised features and labels to fit, and 10,000 more to judge by."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(num_features, num_features)))[0].astype(np.float32)
    spectrum = (1 / np.arange(1, num_features + 1)).astype(np.float32)
    features = (rng.standard_normal((num_images + 10_000, num_features), dtype=np.float32) * spectrum) @ turned
    features = standardised(features, np.ones(len(features)))[0]
    logits = features @ rng.normal(size=(num_features, NUM_LABELS)).astype(np.float32) * (3 / num_features**0.5)
    cuts = [np.quantile(logits[:, k], 1 - share) for k, share in enumerate(np.geomspace(0.01, 0.4, NUM_LABELS))]
    truth = (logits - cuts + rng.logistic(size=logits.shape) > 0).astype(np.float64)
    return features[:num_images], truth[:num_images], features[num_images:], truth[num_images:]


def _row(name: str, ours: float, peer: float) -> dict:
    return {
        "name": name,
        "ours": round(ours, 2),
        "peer": round(peer, 1),
        "unit": "s",
        "ratio": round(peer / ours, 1),
        "floor": 1,
        "goal": 5,
    }


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
