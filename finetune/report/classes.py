"""Class by class: figures, curves, operating points, confusion, and whether probabilities can be believed."""

from typing import Any

from data.charts import legend
from data.page import EMPTY, Html, figure, folded, grid, join, paragraph, table
from finetune.report.drawings import (
    Drawing,
    confusion_drawing,
    forest_drawing,
    precision_recall_drawing,
    reliability_drawing,
    roc_drawing,
)
from finetune.report.evidence import Evidence, thresholds_of
from finetune.report.headline import FEW_PATIENTS
from finetune.report.tables import confusion_table
from finetune.report.words import NAMES, Results, calibration_mark, first_model, patient_units, shown, value_of

FIRST, MORE = ("auroc", "auprc", "sensitivity", "specificity"), ("precision", "f1", "brier", "ece")
TWO_DIGITS = ("sensitivity", "specificity", "precision", "f1")


def by_class(results: Results, evidence: Evidence | None) -> tuple[Html, list[Drawing]]:
    """Figures of each class, where its thresholds lie, and its ROC and precision curves."""
    model = first_model(results)
    per_class = model["test"].get("per_class") or {}
    if not per_class:
        return EMPTY, []
    told = "each class against the rest" if len(per_class) > 1 else "the label against its absence"
    caption = f"{model['title']}, {told}."
    parts = [_class_table(results, FIRST, caption), _thresholds(results), _operating(results)]
    if any(name in row for row in per_class.values() for name in MORE):
        parts.append(folded("Precision, F1, Brier score and ECE", _class_table(results, MORE, caption)))
    drawings = [forest_drawing("classes-auroc", "AUROC by class", [(n, r["auroc"]) for n, r in per_class.items()])]
    if evidence is not None:
        curves, drawn = _curves(results, evidence)
        parts.append(curves)
        drawings += drawn
    return join(parts), [drawing for drawing in drawings if drawing]


def confusion(results: Results) -> tuple[Html, list[Drawing]]:
    """The confusion matrix; empty where classes do not exclude each other."""
    found = first_model(results)["test"].get("confusion")
    if not found:
        return EMPTY, []
    told = paragraph("Share of the cases of each true class, and their number. Hold the pointer over a cell for its "
                     "interval.")  # fmt: skip
    return confusion_table(found) + told, [confusion_drawing(found)]


def calibration(results: Results) -> tuple[Html, list[Drawing]]:
    """Whether of the cases given 70 %, 70 % have it; empty where the results do not say."""
    model = first_model(results)
    test = model["test"]
    found = {n: row["calibration"] for n, row in (test.get("per_class") or {}).items() if row.get("calibration")}
    drawings = [d for label, row in found.items() if (d := reliability_drawing(label, row["bins"]))]
    if not drawings:
        return EMPTY, []
    temperature, mark = model.get("temperature", 1.0), calibration_mark("ece", model)
    parts = [paragraph(
        "On the dashed line, a probability is what it says: of the cases given 30 %, 30 % have it. Above the line it "
        "is more common than said, below it rarer. Each point holds as equal a share of the cases as ties allow, with "
        "its interval."
    )]  # fmt: skip
    if compared := test.get("calibration"):
        rows = [[name, *(compared[side].get(key) for side in ("before", "after"))] for name, key in
                (("ECE", "ece"), ("Brier score", "brier"), ("negative log-likelihood", "nll"))]  # fmt: skip
        shown_rows = [[name, *(None if v is None else f"{v:.3f}" for v in values)] for name, *values in rows]
        caption = (
            f"Before and after temperature scaling (T = {temperature:.3g}, fitted on validation); smaller is better."
        )
        parts.append(table(["", "before", f"after{mark}"], shown_rows, caption))
    ece = {label: row.get("ece") for label, row in test["per_class"].items()}
    plots = [figure(drawing.content, _calibration_caption(label + mark, found[label], ece.get(label)))
             for label, drawing in zip([n for n, r in found.items() if r["bins"]], drawings)]  # fmt: skip
    return join([*parts, grid(plots)]), list(drawings)


def _calibration_caption(label: str, row: dict[str, Any], ece: dict[str, Any] | None) -> str:
    told = label
    if ece is not None and ece["value"] is not None:
        told += f": ECE {value_of(ece) if ece.get('low') is None else shown(ece)}"
        told += f", by chance alone {ece['by_chance']:.3f}" if ece.get("by_chance") is not None else ""
    if row.get("slope") is not None:
        told += f", slope {row['slope']:.2f} (1 is right), intercept in the large {row['intercept']:+.2f} (0 is right)"
    return told


def _class_table(results: Results, names: tuple[str, ...], caption: str) -> Html:
    model, units = first_model(results), patient_units(results)
    per_class = model["test"]["per_class"]
    shows = [name for name in names if any(name in row for row in per_class.values())]
    rows: list[list[str | int | None]] = [
        [
            label,
            row["positives"],
            _patients(row),
            *(shown(row.get(name), digits=2 if name in TWO_DIGITS else 3) for name in shows),
        ]
        for label, row in per_class.items()
    ]
    if any("few" in str(cells[2]) for cells in rows):
        caption += f" Few: fewer than {FEW_PATIENTS} {units} on one side, with it or without it."
    header = ["class", "cases", units, *(NAMES.get(name, name) + calibration_mark(name, model) for name in shows)]
    delong = [_delong(row.get("auroc")) for row in per_class.values()]
    if "auroc" not in shows or not any(delong):
        return table(header, rows, caption)
    place = header.index(NAMES["auroc"]) + 1
    header.insert(place, "AUROC, DeLong")
    for cells, interval in zip(rows, delong):
        cells.insert(place, interval)
    told = "DeLong (1988): the normal interval of the same AUROC, where nobody has several cases with the label known."
    return table(header, rows, f"{caption} {told}")


def _patients(row: dict[str, Any]) -> str:
    """How many have it, marked where they, or those without it, are few; by the smaller side."""
    patients, without = row["patients"], row.get("patients_without")
    if without is not None and without < min(patients, FEW_PATIENTS):
        return f"{patients} (few: {without} without)"
    return f"{patients} (few)" if patients < FEW_PATIENTS else str(patients)


def _delong(auroc: dict[str, Any] | None) -> str | None:
    """DeLong's interval; None, a dash in tables, where it has none."""
    found = (auroc or {}).get("delong")
    return f"{found['low']:.3f} to {found['high']:.3f}" if found else None


def _curves(results: Results, evidence: Evidence) -> tuple[Html, list[Drawing]]:
    names = {name: m["title"] for name, m in results["models"].items() if name in evidence.scores}
    per_class = first_model(results)["test"]["per_class"]
    roc_plots, pr_plots, drawings = [], [], []
    for label in evidence.labels:
        k = evidence.column(label)
        scores = {title: evidence.scores[name][:, k] for name, title in names.items()}
        row = per_class.get(label, {})
        for make, plots, told in (
            (roc_drawing, roc_plots, f"{label}: AUROC {shown(row.get('auroc'))}"),
            (precision_recall_drawing, pr_plots, f"{label}: AUPRC {shown(row.get('auprc'))}"),
        ):
            drawing = make(label, evidence.truth_NK[:, k], scores)
            if drawing is None:
                plots.append(figure(paragraph("Curve undefined: one class only."), label))
            else:
                plots.append(figure(drawing.content, told if make is roc_drawing or "auprc" in row else label))
                drawings.append(drawing)
    key = legend(list(names.values())) if len(names) > 1 else EMPTY
    parts = [key, grid(roc_plots)]
    told = paragraph("Precision is the share of the cases called positive that are; the dashed line is what guessing "
                     "gives, the share of positives among the evaluated cases.")  # fmt: skip
    return join([*parts, folded("Precision and sensitivity", told + grid(pr_plots))]), drawings


def _thresholds(results: Results) -> Html:
    thresholds = thresholds_of(results)
    model = first_model(results)
    parts = []
    if len(thresholds) == 1:
        parts.append(paragraph(
            f"Positive from a probability of {next(iter(thresholds.values())):.3f} on: the threshold with the largest "
            "sensitivity + specificity on validation (Youden)."
        ))  # fmt: skip
    elif thresholds:
        told = ", ".join(f"{label} {value:.3f}" for label, value in thresholds.items())
        parts.append(paragraph(f"Positive from these probabilities on, chosen on validation (Youden): {told}."))
    if one_sided := model.get("thresholds_without_positives"):
        parts.append(paragraph(f"Validation has one side only of {', '.join(one_sided)}: threshold not chosen there."))
    return join(parts)


def _operating(results: Results) -> Html:
    """Sensitivity where specificity was fixed on validation, and back."""
    per_class = first_model(results)["test"]["per_class"]
    rows = []
    for label, row in per_class.items():
        one, other = row.get("at_specificity"), row.get("at_sensitivity")
        if one or other:
            rows.append([label, *_point(one), *_point(other)])
    if not rows:
        return EMPTY
    wanted = results.get("operating", {})
    high_specificity, high_sensitivity = (f"{100 * wanted.get(k, 0.9):g} %" for k in ("specificity", "sensitivity"))
    header = ["class", f"at {high_specificity} specificity: from", "sensitivity", "specificity",
              f"at {high_sensitivity} sensitivity: from", "sensitivity", "specificity"]  # fmt: skip
    units = patient_units(results)
    caption = f"What thresholds chosen on validation for a fixed specificity, or sensitivity, gave on these {units}."
    return folded("At fixed specificity and sensitivity", table(header, rows, caption))


def _point(found: dict[str, Any] | None) -> list[str | None]:
    if not found:
        return [None, None, None]
    threshold = "none: nobody is positive" if found["threshold"] is None else f"{found['threshold']:.3f}"
    return [threshold, shown(found["sensitivity"], digits=2), shown(found["specificity"], digits=2)]
