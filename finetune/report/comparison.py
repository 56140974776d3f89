"""The model beside its baselines: figures with intervals, paired differences, what was chosen."""

from typing import Any

from data.page import EMPTY, Html, figure, folded, join, paragraph, table
from finetune.metrics import OF_NUMBERS
from finetune.report.drawings import Drawing, forest_drawing
from finetune.report.patients import by_patient
from finetune.report.tables import forest
from finetune.report.words import (
    NAMES,
    SMALLER_IS_BETTER,
    Results,
    calibration_mark,
    first_model,
    listed,
    name_of,
    p_of,
    patient_units,
    shown,
    title_of,
)

FIRST = ("auroc", "auprc", "balanced_accuracy", "top1")
COMPARED = (*FIRST, "f1", "top3", "brier", "ece")
"""What models are compared in; those that come first are seen at once, the rest on a click."""


def comparison(results: Results) -> tuple[Html, list[Drawing]]:
    """Section and drawings; a section of one model shows its figures alone."""
    models, units = results["models"], patient_units(results)
    parts: list[Html] = []
    more: list[Html] = []
    drawings = []
    for name in COMPARED:
        rows = [
            (m["title"] + calibration_mark(name, m), m["test"][name], n)
            for n, m in enumerate(models.values())
            if m["test"].get(name)
        ]
        if rows:
            title = title_of(name, results)
            smaller = " Smaller is better." if name in SMALLER_IS_BETTER else ""
            place = parts if name in FIRST else more
            measured = ", with intervals" if any(found.get("low") is not None for _, found, _ in rows) else ""
            place.append(figure(forest(rows, title), f"{title} on the evaluated {units}{measured}.{smaller}"))
            drawings.append(forest_drawing(f"models-{name}", title, [row[:2] for row in rows]))
    parts += [folded("More figures", join(more))] if more else []
    parts.append(_numbers(results))
    patients, drawn = by_patient(results)
    parts.append(patients)
    drawings += drawn
    differences = [row for row in results["comparisons"] if row.get("label") is None and not _of_bound(row, results)]
    if differences:
        parts.append(_differences(differences, results))
    bound = [m["title"] for m in models.values() if calibration_mark("brier", m)]
    if bound and len(models) > 1:
        parts.append(paragraph(f"Not calibrated, so not compared in Brier score: {listed(bound)}."))
    of_numbers = [row for row in results["comparisons"] if row["figure"] in OF_NUMBERS]
    if of_numbers:
        parts.append(_differences(of_numbers, results))
    by_label = [row for row in results["comparisons"] if row.get("label") is not None and row not in of_numbers]
    if by_label:
        parts.append(folded("Differences in AUROC by class", _differences(by_label, results)))
    chosen = [[m["title"], m["head"], _chosen(m.get("chosen") or {})] for m in models.values() if m.get("head")]
    if any(row[2] for row in chosen):
        parts.append(folded("What was chosen on validation", table(["model", "head", "choice"], chosen, numeric=False)))
    return join(parts), [drawing for drawing in drawings if drawing]


def _numbers(results: Results) -> Html:
    """Figures of the outcomes that are numbers, where there are any."""
    names = list(first_model(results)["test"].get("numbers") or {})
    if not names:
        return EMPTY
    header = ["", "cases", *(NAMES[figure] for figure in OF_NUMBERS)]
    rows = [
        [f"{name}, {m['title']}", row["cases"], *(shown(row.get(f)) for f in OF_NUMBERS)]
        for name in names
        for m in results["models"].values()
        if (row := (m["test"].get("numbers") or {}).get(name))
    ]
    return table(header, rows, "Estimated numbers, in the units of the labels.")


def _of_bound(row: dict[str, Any], results: Results) -> bool:
    """Whether a difference tells of a temperature at its bound; earlier versions gave these too."""
    return any(calibration_mark(row["figure"], results["models"][row[side]]) for side in ("model", "baseline"))


def _differences(rows: list[dict[str, Any]], results: Results) -> Html:
    corrected = any(row.get("p_holm") is not None for row in rows)
    detectable = any(row.get("detectable") is not None for row in rows)
    delong = any(row.get("p_delong") is not None for row in rows)
    header = ["against", "figure", "difference", "p"]
    header += (["p, DeLong"] if delong else []) + (["p, Holm"] if corrected else [])
    header += ["detectable"] if detectable else []
    body = []
    for row in rows:
        name = name_of(row["figure"], results) + ("" if row.get("label") is None else f", {row['label']}")
        cells = [
            results["models"][row["baseline"]]["title"],
            f"{name} (smaller is better)" if row["figure"] in SMALLER_IS_BETTER else name,
            shown(row, signed=True),
            p_of(row["p"]),
        ]
        cells += ([p_of(row.get("p_delong"))] if delong else []) + ([p_of(row.get("p_holm"))] if corrected else [])
        least = row.get("detectable")
        cells += [None if least is None else f"{least:.3f}"] if detectable else []
        body.append(cells)
    units = patient_units(results)
    parts = [table(header, body, f"Paired differences between the same {units}, with interval and two-sided p.")]
    if corrected or detectable:
        texts = ["Holm: corrected for all comparisons in this figure." if corrected else ""]
        before = ", before Holm's correction" if corrected else ""
        texts.append(f"Detectable: the smallest difference that is found four times in five with as many such {units}"
                     f"{before}." if detectable else "")  # fmt: skip
        parts.append(paragraph(" ".join(filter(None, texts))))
    return join(parts)


def _chosen(chosen: dict[str, Any]) -> str:
    """What the validation split chose, whatever the head calls it."""
    told = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
            if key not in ("val_auroc", "val_score", "converged", "of")]  # fmt: skip
    if "of" in chosen:
        told.append(f"of {chosen['of']}")
    for key, name in (("val_auroc", "AUROC"), ("val_score", "score")):
        if isinstance(chosen.get(key), float):
            told.append(f"validation {name} {chosen[key]:.3f}")
    if not chosen.get("converged", True):
        told.append("not converged: raise linear.max_iterations")
    return ", ".join(told)
