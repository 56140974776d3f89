"""Results of schema 2, whole, made from a run's predictions: what a page is tested on without computing it all."""

import copy
from typing import Any

import numpy as np

from finetune.report.evidence import Evidence


def figure(value: float | None, half: float = 0.04) -> dict[str, Any]:
    """A figure with an interval around it."""
    if value is None:
        return {"value": None, "low": None, "high": None, "undefined_resamples": 50}
    return {"value": value, "low": value - half, "high": value + half, "undefined_resamples": 0}


def whole(results: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    """The results with every section of schema 2 that a page can show; numbers are made up but for the bins."""
    found = copy.deepcopy(results)
    found |= {"schema_version": 2, "kind": "finetune", "operating": {"specificity": 0.9, "sensitivity": 0.9}}
    for number, (name, model) in enumerate(found["models"].items()):
        test = model["test"]
        test |= {"auprc": figure(0.61), "f1": figure(0.5), "brier": figure(0.31), "ece": figure(0.058, 0.01)}
        test["calibration"] = {
            "before": {"nll": 0.52, "brier": 0.33, "ece": 0.09},
            "after": {"nll": 0.49, "brier": 0.31, "ece": 0.058},
        }
        model |= {"temperature": 1.31, "thresholds_without_positives": [], "thresholds": None}
        test["subgroups"] = {} if number else _subgroups(list(test["per_class"]))
        for k, row in enumerate(test["per_class"].values()):
            row |= {"auprc": figure(0.55 + 0.03 * k), "precision": figure(0.6), "f1": figure(0.5), "ece": figure(0.04)}
            row |= {"prevalence": row["positives"] / (row["positives"] + row["negatives"]), "brier": figure(0.1)}
            point = {"threshold": 0.31, "sensitivity": figure(0.7), "specificity": figure(0.91), "target": 0.9}
            row |= {"at_specificity": point, "at_sensitivity": None if k == 0 else point}
            row["calibration"] = _calibration(evidence.scores[name][:, k], evidence.truth_NK[:, k])
    for row in found["comparisons"]:
        row |= {"label": None, "p_delong": None, "p_holm": 0.21, "detectable": 0.031}
    label = found["labels"][0]
    found["comparisons"].append({**found["comparisons"][0], "label": label, "p_delong": 0.03, "p_holm": 0.06})
    return found


def _calibration(scores_N: np.ndarray, truth_N: np.ndarray) -> dict[str, Any]:
    bins = []
    for some in np.array_split(np.argsort(scores_N), 10):
        share = float(truth_N[some].mean())
        ends = {"low": max(0.0, share - 0.08), "high": min(1.0, share + 0.08)}
        bins.append({"cases": len(some), "mean_score": float(scores_N[some].mean()), "share_positive": share, **ends})
    return {"slope": 0.93, "intercept": -0.02, "bins": bins}


def _subgroups(labels: list[str]) -> dict[str, Any]:
    def group(patients: int, value: float | None) -> dict[str, Any]:
        judged = {"auroc": figure(value), "sensitivity": figure(0.7), "specificity": figure(0.8)}
        return {"patients": patients, "cases": patients + 20, **judged,
                "labels": {label: {"positives": 9, **judged} for label in labels}}  # fmt: skip

    groups = {"female": group(80, 0.9), "male": group(71, 0.85), "unknown": group(12, None)}
    gap = {**figure(0.05), "best": "female", "worst": "male"}
    told = {"groups": groups, "hidden_groups": 2, "macro_over": labels[:2]}
    return {"sex": {**told, "gaps": {"auroc": gap, "sensitivity": None, "specificity": gap, "labels": {}}},
            "scanner": {"groups": {}, "hidden_groups": 4, "macro_over": [], "gaps": {"auroc": None}}}  # fmt: skip


def external(results: dict[str, Any]) -> dict[str, Any]:
    """The same model on another dataset."""
    found = copy.deepcopy(results)
    name, model = next(iter(found["models"].items()))
    model["validation"] = {}
    counts = found["cohort"].pop("test")
    trained_on, on_test = found["dataset"], {"auroc": model["test"]["auroc"]}
    found["trained_on_per_class"] = {
        label: {name: row[name]["value"] for name in ("auroc", "sensitivity", "specificity")}
        for label, row in model["test"]["per_class"].items()
    }
    found |= {"kind": "external", "models": {name: model}, "comparisons": [], "cohort": {"external": counts}}
    settings = {"splits": ["val", "test"], "seed": 3}
    found["identity"] = {"model": "f" * 64, "dataset": found["dataset"]["fingerprint"],
                         "label_map": {"naevus": "nevus"}, "settings": settings}  # fmt: skip
    found["dataset"] = {**found["dataset"], "name": "elsewhere"}
    ood = {"new_dataset": figure(0.8), "unseen_condition": figure(None)}
    del found["test_evaluations"]
    found |= {"trained_on": trained_on, "trained_on_test": on_test,
              "out_of_distribution": {"energy": ood, "knn": ood, "mahalanobis": ood},
              "out_of_distribution_counts": {"known_cases": 40, "unseen_cases": 0}}  # fmt: skip
    return found


EFFICIENCY = {
    "figure": "macro AUROC",
    "draws": 5,
    "baseline": "untrained",
    "labels_saved": {
        "pretrained": {"target": 0.8, "fraction": 0.16, "at_smallest": False, "by_draw": [0.16, None, 0.09]}
    },
    "curves": {
        name: {
            "title": title,
            "points": [
                {"fraction": share, "mean": mean, "low": mean - 0.03, "high": mean + 0.03}
                for share in (0.01, 0.03, 0.1, 0.3, 1.0)
                if (mean := 0.6 + up + 0.1 * np.log10(100 * share))
            ],
        }
        for name, title, up in (("pretrained", "resnet18, simclr", 0.08), ("untrained", "resnet18, untrained", 0.0))
    },
}
