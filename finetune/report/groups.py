"""For whom else it holds: subgroups and their gaps, other hospitals, conditions never seen, fewer labels."""

from typing import Any

from data.charts import legend
from data.page import EMPTY, Html, figure, folded, join, paragraph, table, tag
from finetune.labels_saved import in_words, sentence, share_of, untested, why_not_as_asked
from finetune.report.drawings import Drawing, curve_drawing, forest_drawing, slug
from finetune.report.tables import forest
from finetune.report.words import (
    NAMES,
    Results,
    calibration_mark,
    counted,
    covered,
    first_model,
    label_names,
    listed,
    patient_unit,
    patient_units,
    shown,
    title_of,
    with_own_titles,
)

JUDGED = ("auroc", "sensitivity", "specificity")
SCORES = {"energy": "energy", "knn": "nearest neighbours", "mahalanobis": "Mahalanobis"}


def subgroups(results: Results) -> tuple[Html, list[Drawing]]:
    """A table an attribute, the gap between its best and its worst group, and who is too few to be shown."""
    found = first_model(results)["test"].get("subgroups") or {}
    parts, drawings = [], []
    for attribute, told in found.items():
        groups = told["groups"]
        parts.append(tag("h3", attribute))
        if not groups:
            parts.append(paragraph(f"No group has enough {patient_units(results)} to be judged by itself."))
            continue
        if any(row[name]["value"] is not None for row in groups.values() for name in JUDGED):
            rows = [(f"{name} ({row['patients']})", row["auroc"], 0) for name, row in groups.items()]
            title, whole = f"{title_of('auroc', results)} by {attribute}", _of_everybody(told, results)
            caption = f"{title}; in brackets the number of {patient_units(results)}."
            caption += "" if whole is None else " The line is that of everybody."
            parts.append(figure(forest(rows, title, whole), caption))
            parts += [_gaps(told.get("gaps") or {}, attribute, results)]
            parts.append(_group_table(groups, attribute, results))
            drawings.append(forest_drawing(f"subgroups-{slug(attribute)}", title, [row[:2] for row in rows]))
        else:
            parts.append(paragraph("No label can be judged in two groups; each label by itself is below."))
        parts += [_by_label(groups, attribute), _numbers(told, attribute, results), _left_out(told, results)]
    return join(parts), [drawing for drawing in drawings if drawing]


def _of_everybody(told: dict[str, Any], results: Results) -> float | None:
    """The figure of all patients over the labels that the groups' figures are of."""
    per_class = first_model(results)["test"].get("per_class") or {}
    over = told.get("macro_over") or label_names(results)
    values = [per_class.get(label, {}).get("auroc", {}).get("value") for label in over]
    return None if not values or None in values else sum(values) / len(values)


def other_hospitals(external: list[Results]) -> tuple[Html, list[Drawing]]:
    """How the same model does on each further dataset, without training there."""
    if not external:
        return EMPTY, []
    rows, plotted = [], []
    over = [_judged(found) for found in external]
    for found, labels in zip(external, over):
        test, counts = first_model(found)["test"], next(iter(found["cohort"].values()))
        name = found["dataset"]["name"]
        ece = shown(test.get("ece")) + calibration_mark("ece", first_model(found))
        of = counted(counts["patients"], patient_unit(found))
        rows.append([name, of, counts["cases"], shown(test.get("auroc")), shown(test.get("auprc")),
                     shown(test.get("balanced_accuracy")), ece, listed(labels) if labels else "none"])  # fmt: skip
        if test.get("auroc"):
            plotted.append((name, test["auroc"], 0))
    header = ["dataset", "evaluated on", "cases", "AUROC", "AUPRC", "balanced accuracy", "ECE", "AUROC known of"]
    caption = "The same model, thresholds and temperature on other datasets."
    if all(labels == label_names(found) for found, labels in zip(external, over)):
        header, rows = header[:-1], [row[:-1] for row in rows]
    else:
        caption += " Means are over the labels that a dataset has: compare rows with the same ones alone."
    parts = [figure(forest(plotted, "AUROC on other datasets"), "AUROC on other datasets, without training there.")]
    parts.append(table(header, rows, caption))
    drawing = forest_drawing("external-auroc", "AUROC on other datasets", [row[:2] for row in plotted])
    return join(parts), [drawing] if drawing else []


def _judged(found: Results) -> list[str]:
    """The labels whose AUROC is known there, over which the means are."""
    per_class = first_model(found)["test"]["per_class"]
    return [name for name, row in per_class.items() if (row.get("auroc") or {}).get("value") is not None]


def unseen(results: Results) -> Html:
    """How well the model tells that a case is like none that it learned from; empty where not measured."""
    found = results.get("out_of_distribution")
    if not found:
        return EMPTY
    rows = [
        [title, shown(row.get("new_dataset")), shown(row.get("unseen_condition"))]
        for score, title in SCORES.items()
        if (row := found.get(score))
    ]
    counts = results.get("out_of_distribution_counts") or {}
    told = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
    header = ["score", "another dataset", "unseen condition"]
    caption = "AUROC of telling a case that is unlike the training data, by each score; 0.5 is guessing."
    return table(header, rows, caption) + (paragraph(f"Measured on {told}.") if told else EMPTY)


def label_efficiency(efficiency: dict[str, Any] | None) -> tuple[Html, list[Drawing]]:
    """Curves over the share of labelled patients, with bands over draws; empty where no result is given.

    `efficiency` is efficiency.json of `python -m finetune efficiency`.
    """
    if not efficiency or not efficiency.get("curves"):
        return EMPTY, []
    name, models = str(efficiency["figure"]), with_own_titles({"models": efficiency["curves"]})["models"]
    curves = {
        model["title"]: [
            {"x": share_of(point), "value": point["mean"], "low": point["low"], "high": point["high"]}
            for point in model["points"]
        ]
        for model in models.values()
    }
    units = patient_units(efficiency)
    drawing = curve_drawing("efficiency", f"{name} by share of labels", curves, f"share of labelled {units}", name)
    if drawing is None:
        return EMPTY, []
    baseline = models[efficiency["baseline"]]["title"]
    saved = (efficiency.get("labels_saved") or {}).items()
    parts = [paragraph(efficiency["about"])] if efficiency.get("about") else []
    parts += [paragraph(sentence(models[model]["title"], baseline, name, found)) for model, found in saved]
    if saved:
        parts.append(
            paragraph(
                f"{untested(units)} Of the labels to train on, that is: at every share the whole validation split "
                "chooses the model, and its labels are not counted."
            )
        )
    caption = (
        f"{name} on test {units}: mean of {efficiency['draws']} draws, with a band from the lowest to the highest."
    )
    parts += [legend(list(curves)), figure(drawing.content, caption)]
    rows = [
        [f"{model['title']}, {in_words(point)}", shown({**point, "value": point["mean"]})]
        for model in models.values()
        for point in model["points"]
    ]
    why = why_not_as_asked(models[efficiency["baseline"]]["points"], units)
    parts.append(folded("Numbers of the curves", table(["", name], rows, why)))
    return join(parts), [drawing]


def _gaps(gaps: dict[str, Any], attribute: str, results: Results) -> Html:
    told = [
        f"{NAMES[name]} {shown(gap)} ({gap['best']} over {gap['worst']}{covered(gap, results)})"
        for name in JUDGED
        if (gap := gaps.get(name)) and gap["value"] is not None
    ]
    if not told:
        return EMPTY
    return paragraph(
        f"Gap between the best and the worst group of {attribute}: {'; '.join(told)}. The two were found in these very "
        f"{patient_units(results)}, so that chance alone makes gaps, and the interval is too high."
    )


def _group_table(groups: dict[str, Any], attribute: str, results: Results) -> Html:
    header = [attribute, patient_units(results), "cases", "AUROC", "sensitivity", "specificity"]
    rows = [
        [name, row["patients"], row["cases"], *(shown(row.get(figure_name)) for figure_name in JUDGED)]
        for name, row in groups.items()
    ]
    return table(header, rows)


def _by_label(groups: dict[str, Any], attribute: str) -> Html:
    """Every label in every group, on a click."""
    rows = [
        [f"{name}, {label}", row["positives"], *(shown(row.get(figure_name)) for figure_name in JUDGED)]
        for name, group in groups.items()
        for label, row in (group.get("labels") or {}).items()
    ]
    if len({label for group in groups.values() for label in (group.get("labels") or {})}) < 2:
        return EMPTY
    return folded(f"{attribute} by class", table(["", "positives", "AUROC", "sensitivity", "specificity"], rows))


def _numbers(told: dict[str, Any], attribute: str, results: Results) -> Html:
    """The mean absolute error of each predicted number in every group, and the gaps; empty without numbers."""
    rows = [
        [f"{name}, {number}", group["patients"], shown(found["mae"])]
        for name, group in told["groups"].items()
        for number, found in (group.get("numbers") or {}).items()
    ]
    gaps = [
        f"{number} {shown(gap)} ({gap['best']} better than {gap['worst']}{covered(gap, results)})"
        for number, found in ((told.get("gaps") or {}).get("numbers") or {}).items()
        if (gap := found["mae"])
    ]
    between = paragraph(f"Gap in MAE between the best and the worst group: {'; '.join(gaps)}.") if gaps else EMPTY
    return table([attribute, patient_units(results), "MAE"], rows) + between if rows else EMPTY


def _left_out(told: dict[str, Any], results: Results) -> Html:
    texts = []
    if hidden := told.get("hidden_groups"):
        who = f"{counted(hidden, 'group')} of too few {patient_units(results)}"
        texts.append(f"{who} {'is' if hidden == 1 else 'are'} not shown.")
    over, labels = told.get("macro_over"), label_names(results)
    if over and set(over) != set(labels) and len(labels) > 1:
        texts.append(f"Means are over the labels that the largest groups can be judged on: {listed(list(over))}.")
    if over and any(row["auroc"]["value"] is None for row in told["groups"].values()):
        texts.append("A group that cannot be judged on all of them has none.")
    return paragraph(" ".join(texts)) if texts else EMPTY
