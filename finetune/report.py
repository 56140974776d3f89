"""report.html: the results as one page that a clinician and a reviewer can both read."""

import json
from typing import Any

from data.charts import legend
from data.page import (
    Html,
    Section,
    figure,
    folded,
    grid,
    join,
    note,
    page,
    pairs,
    paragraph,
    table,
    tag,
    text,
    tiles,
)
from finetune.charts import confusion_table, forest, roc_plot, shown
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.evaluate import Judged
from finetune.pictures import sample_images

NAMES = {
    "auroc": "AUROC",
    "auprc": "area under the precision-recall curve",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "brier": "Brier score",
    "top1": "top-1 accuracy",
    "top3": "top-3 accuracy",
}
FEW_PATIENTS = 10


def report_page(results: dict[str, Any], judged: list[Judged], cohort: Cohort, config: FinetuneConfig) -> str:
    """The page, from the results and the cases behind them; loads nothing from anywhere."""
    dataset = results["dataset"]
    test = results["cohort"]["test"]
    lead = (
        f"{', '.join(results['labels'])}: {_head(judged[0])} on {dataset['name']}, tested on {test['cases']} cases "
        f"({test['images']} images) of {test['patients']} patients who were in neither training nor validation."
    )
    sections = [
        Section("Result", _headline(results)),
        Section("Compared with", _comparison(results)),
        Section("By class", _classes(results, judged)),
        Section("Confusion", _confusion(results)),
        Section("Images", sample_images(judged[0], cohort)),
        Section("Who was studied", _cohort(results)),
        Section("Lineage", _lineage(results)),
        Section("How it was done, and limits", _method(results, config)),
    ]
    return page(f"{dataset['name']}: {results['models']['pretrained']['title']}", sections, lead)


def _headline(results: dict[str, Any]) -> Html:
    test = results["models"]["pretrained"]["test"]
    percent = f"{100 * results['bootstrap']['confidence']:g} %"
    shown_tiles = [
        (_name(results, figure_name), _value(test[figure_name]), _span(test[figure_name], percent))
        for figure_name in NAMES
        if figure_name in test
    ]
    parts = [note(warning, kind="warning") for warning in results["warnings"]]
    parts.append(tiles(shown_tiles))
    parts += [
        paragraph(_sentence(row, results))
        for row in results["comparisons"]
        if row["figure"] == "auroc" and row["label"] is None
    ]
    if test["auroc_leaves_out"]:
        left_out = ", ".join(test["auroc_leaves_out"])
        parts.append(
            note(f"Undefined for want of positive or negative test cases, and left out of the mean: {left_out}.")
        )
    return join(parts)


def _comparison(results: dict[str, Any]) -> Html:
    models = results["models"]
    parts: list[Html] = []
    for name in NAMES:
        rows = [(m["title"], m["test"][name], n) for n, m in enumerate(models.values()) if name in m["test"]]
        if rows:
            title = _name(results, name)
            parts.append(figure(forest(rows, title), f"{title} on the test patients, with intervals."))
    differences = [
        [
            f"against {models[row['baseline']]['title']}",
            NAMES[row["figure"]],
            shown(row, signed=True),
            "–" if row["p"] is None else _p(row["p"]),
        ]
        for row in results["comparisons"]
        if row["label"] is None
    ]
    if differences:
        caption = "Paired differences between the same patients, with interval and two-sided p."
        parts.append(table(["", "figure", "difference", "p"], differences, caption))
    chosen = [[m["title"], m["head"], _chosen(m["chosen"])] for m in models.values()]
    parts.append(folded("What was chosen on validation", table(["model", "head", "choice"], chosen, numeric=False)))
    return join(parts)


def _classes(results: dict[str, Any], judged: list[Judged]) -> Html:
    models = list(results["models"].values())
    per_class = models[0]["test"]["per_class"]
    rows = [
        [
            label,
            row["positives"],
            f"{row['patients']}{' (few)' if row['patients'] < FEW_PATIENTS else ''}",
            shown(row["auroc"]),
            shown(row["sensitivity"], digits=2),
            shown(row["specificity"], digits=2),
        ]
        for label, row in per_class.items()
    ]
    header = ["class", "cases", "patients", "AUROC", "sensitivity", "specificity"]
    parts = [table(header, rows, f"{models[0]['title']}, each class against the rest.")]
    if models[0]["threshold"] is not None:
        parts.append(
            paragraph(
                f"Positive from a probability of {models[0]['threshold']:.3f} on: the threshold with the largest "
                "sensitivity + specificity on validation (Youden)."
            )
        )
    parts.append(legend([m["title"] for m in models]))
    plots = [
        roc_plot(label, [item.test for item in judged], f"{label}: AUROC {shown(per_class[label]['auroc'])}")
        for label in results["labels"]
    ]
    return join([*parts, grid(plots)])


def _confusion(results: dict[str, Any]) -> Html:
    confusion = results["models"]["pretrained"]["test"]["confusion"]
    return confusion_table(confusion) + paragraph(
        "Share of the cases of each true class, and their number. Hold the pointer over a cell for its interval."
    )


def _cohort(results: dict[str, Any]) -> Html:
    splits = results["cohort"]
    rows: list[list[Any]] = [
        [name, *(splits[split][name] for split in splits)] for name in ("patients", "cases", "images")
    ]
    rows += [[f"cases: {c}", *(splits[s]["cases_per_class"][c] for s in splits)] for c in results["classes"]]
    fraction = results["identity"]["recipe"]["label_fraction"]
    caption = "Labelled images used" + (f"; {fraction:g} of the training patients." if fraction < 1 else ".")
    return table(["", "training", "validation", "test"], rows, caption)


def _lineage(results: dict[str, Any]) -> Html:
    dataset = results["dataset"]
    parts = [
        tag("h3", "Evaluated on"),
        pairs(
            {
                "dataset": dataset["name"],
                "source": dataset["source"],
                "citation": dataset["citation"],
                "licence": dataset["licence"],
                "fingerprint": tag("code", dataset["fingerprint"]),
            }
        ),
    ]
    for model in results["models"].values():
        parts.append(tag("h3", model["title"]))
        parts.append(pairs({"fingerprint": tag("code", model["fingerprint"])}))
        if model["lineage"]:
            rows = [
                [
                    stage["stage"],
                    origin["name"],
                    origin["images"],
                    ", ".join(origin["splits"]),
                    f"{stage['steps']} × {stage['batch_size']}",
                    tag("code", origin["fingerprint"][:16]),
                ]
                for stage in model["lineage"]
                for origin in stage["datasets"]
            ]
            header = ["stage", "dataset", "images", "splits", "steps × batch", "dataset fingerprint"]
            parts.append(table(header, rows, "Pretrained in these stages, without labels."))
    return join(parts)


def _method(results: dict[str, Any], config: FinetuneConfig) -> Html:
    resampling = results["bootstrap"]
    times = results["test_evaluations"]
    texts = [
        "A case's probability is the mean over its images; all figures are of cases. Splits are by patient. Everything "
        "that was chosen (regularisation or epoch, and the decision threshold) was chosen on validation.",
        f"Intervals: {100 * resampling['confidence']:g} % intervals from {resampling['resamples']} bootstrap "
        "resamples of whole patients, drawn within strata of the patient's rarest class. Differences are taken between "
        "models on the same resamples. They say how the figures would vary with other patients, not with another seed "
        "of the training, and p-values are not corrected for several comparisons.",
        f"The test split was evaluated {times} time{'s' if times != 1 else ''} with this recipe in this folder.",
        "Limits: figures hold for patients, devices and disease frequencies like those of this dataset. Classes with "
        "few patients have wide intervals that may still be too narrow. Nothing here shows use in care. "
        "Not a medical device.",
        "This page holds images of the dataset: its licence and the protection of its patients hold for the page too.",
    ]
    identity = json.dumps(results["identity"], indent=2)
    return join(
        [
            *(paragraph(t) for t in texts),
            folded("Config", tag("pre", identity)),
            folded("Versions", pairs({**results["versions"], "computed in": f"{results['seconds']:g} s"})),
        ]
    )


def _sentence(row: dict[str, Any], results: dict[str, Any]) -> Html:
    models = results["models"]
    one, other = models[row["model"]], models[row["baseline"]]
    name = _name(results, "auroc")
    if row["low"] is None:
        return text(f"{name} against {other['title']}: undefined.")
    percent = f"{100 * results['bootstrap']['confidence']:g} %"
    return text(
        f"{name} of {one['title']}: {row['value']:+.3f} against {other['title']} "
        f"({percent} interval {row['low']:+.3f} to {row['high']:+.3f}, {_p(row['p'])})."
    )


def _name(results: dict[str, Any], figure_name: str) -> str:
    if figure_name == "auroc":
        return "AUROC" if len(results["labels"]) == 1 else "Macro AUROC"
    return NAMES[figure_name].capitalize()


def _head(judged: Judged) -> str:
    contender = judged.outcome.contender
    return f"{contender.title}, {'linear head' if contender.head == 'linear' else 'fully fine-tuned'},"


def _value(number: dict[str, Any]) -> str:
    return "undefined" if number["value"] is None else f"{number['value']:.3f}"


def _span(number: dict[str, Any], percent: str) -> str:
    return "" if number["low"] is None else f"{percent} interval {number['low']:.3f} to {number['high']:.3f}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _chosen(chosen: dict[str, Any]) -> str:
    what = f"C {chosen['C']:g}" if "C" in chosen else f"epoch {chosen['epoch']} of {chosen['of']}"
    note = "" if chosen.get("converged", True) else ", not converged: raise linear.max_iterations"
    return f"{what}, validation AUROC {chosen['val_auroc']:.3f}{note}"
