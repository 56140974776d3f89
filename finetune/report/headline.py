"""What stands first: what the model does, on how many patients it was tested, and how sure the answer is."""

from statistics import fmean
from typing import Any

from data.page import Content, Html, join, note, paragraph, tag, text, tiles
from finetune.report.words import (
    Figure,
    Results,
    calibration_mark,
    confidence,
    counted,
    first_model,
    in_percent,
    interval_of,
    label_kind,
    label_names,
    listed,
    meaning_of,
    number_names,
    p_of,
    patient_unit,
    patient_units,
    shown,
    title_of,
    value_of,
)

TILES = ("auroc", "balanced_accuracy", "top1", "auprc", "ece")
FEW_PATIENTS = 10


def lead(results: Results) -> Html:
    """One paragraph that needs no glossary."""
    counts, test = _counts(results), first_model(results)["test"]
    unit = patient_unit(results)
    patients = tag("b", counted(counts["patients"], unit))
    tested = f" ({counted(counts['cases'], 'case')}, {counted(counts['images'], 'image')})"
    if results.get("kind") == "external":
        trained = (results.get("trained_on") or {}).get("name")
        tested += f" of {results['dataset']['name']}, without any training there"
        tested += f"; it had been trained on {trained}. " if trained else ". "
    else:
        who = "who" if unit == "patient" else f"(each {unit} taken for a patient, since none are known) that"
        tested += f" {who} were in neither training nor validation. "
    return join([_does(results), " It was tested on ", patients, tested, *_success(results, test)])


def headline(results: Results) -> Html:
    """The figures with their intervals, what speaks against them, and how they compare."""
    test = first_model(results)["test"]
    leaks = [warning for warning in results["warnings"] if warning.startswith("LEAKAGE")]
    parts: list[Html] = [note(warning, kind="warning") for warning in leaks]
    large: list[tuple[Content, Content, Content]] = [
        (
            title_of(name, results) + calibration_mark(name, first_model(results)),
            value_of(test[name]),
            interval_of(test[name], results),
        )
        for name in TILES
        if test.get(name) is not None
    ]
    for name, numbers in (test.get("numbers") or {}).items():
        large.append((f"{name}: mean absolute error", value_of(numbers["mae"]), interval_of(numbers["mae"], results)))
    parts.append(tiles(large))
    parts += [note(warning, kind="warning") for warning in results["warnings"] if warning not in leaks]
    parts += [_external(results), *_sentences(results)]
    if left_out := test.get("auroc_leaves_out"):
        told = (
            f"Undefined for want of positive or negative test cases, and left out of the mean: {', '.join(left_out)}."
        )
        parts.append(note(told))
    if told := _told_of_few(results):
        parts.append(note(told))
    meant = [f"{title_of(name, results)}: {meaning}." for name in TILES
             if name in test and (meaning := meaning_of(name, results))]  # fmt: skip
    parts.append(tag("p", " ".join(meant), {"class": "lead small"}))
    return join(parts)


def _told_of_few(results: Results) -> str:
    """Which conditions few patients have, and which few are without; where nobody is, figures are undefined.

    Results of earlier versions do not tell how many are without.
    """
    per_class, parts = first_model(results)["test"].get("per_class", {}), []
    for verb, side in (("have", "patients"), ("are without", "patients_without")):
        if labels := [label for label, row in per_class.items() if 0 < row.get(side, 0) < FEW_PATIENTS]:
            parts.append(f"fewer than {FEW_PATIENTS} test {patient_units(results)} {verb} {listed(labels)}")
    told = ", and ".join(parts)
    return f"F{told[1:]}: intervals that rest on them are wide, and may be too narrow even so." if told else ""


def _does(results: Results) -> str:
    labels, kind, numbers = label_names(results), label_kind(results), number_names(results)
    if kind == "binary":
        what = f"says whether {labels[0]} is there"
    elif kind == "multilabel":
        what = f"says of each of {len(labels)} findings whether it is there ({listed(labels)})"
    else:
        what = f"says which of {len(labels)} classes it is ({listed(labels)})"
    also = f" and estimates {listed(numbers)}" if numbers else ""
    return f"This model looks at the images of a case and {what}{also}."


def _success(results: Results, test: dict[str, Any]) -> list[Content]:
    """How often it is right, in hundredths; what is undefined is not said."""
    said: list[Content] = []
    labels, kind = label_names(results), label_kind(results)
    brackets = f" ({confidence(results)} intervals in brackets)"
    if kind == "multiclass" and _defined(test.get("top1")):
        said += ["It named the right class in ", tag("b", in_percent(test["top1"])), f" of the cases{brackets}. "]
    row = test.get("per_class", {}).get(labels[0], {})
    if kind == "binary" and _defined(row.get("sensitivity")) and _defined(row.get("specificity")):
        found, cleared = (tag("b", in_percent(row[name])) for name in ("sensitivity", "specificity"))
        said += [
            "It found ",
            found,
            f" of the cases with {labels[0]} and cleared ",
            cleared,
            f" of those without{brackets}. ",
        ]
    if _defined(test.get("auroc")):
        over = ", averaged over the labels" if len(labels) > 1 else ""
        said += ["Of two cases, one with a condition and one without, it gives the one with it the higher probability ",
                 tag("b", in_percent(test["auroc"])), f" of the time{over}{'' if said else brackets}. "]  # fmt: skip
    for name, numbers in (test.get("numbers") or {}).items():
        if _defined(numbers["mae"]):
            said += [f"Its estimates of {name} are off by ", tag("b", shown(numbers["mae"])), " on average. "]
    units = patient_units(results)
    said.append(f"The intervals say how much these figures would move with other {units} like these.")
    return said


def _defined(figure: Figure | None) -> bool:
    return figure is not None and figure["value"] is not None


def _sentences(results: Results) -> list[Html]:
    """The comparison in AUROC with each baseline."""
    return [
        paragraph(_sentence(row, results))
        for row in results["comparisons"]
        if row["figure"] == "auroc" and row.get("label") is None
    ]


def _sentence(row: dict[str, Any], results: Results) -> Html:
    models = results["models"]
    one, other = models[row["model"]], models[row["baseline"]]
    name, units = title_of("auroc", results), patient_units(results)
    if row["value"] is None:
        return text(f"{name} against {other['title']}: undefined.")
    if row["low"] is None:
        why = "too few for an interval"
        if row["p"] == 1:
            why = f"the two never differ on these {units}, which gives no interval"
        elif row.get("constant"):
            why = f"the same whichever of these {units} are drawn, which gives no interval"
        return text(f"{name} of {one['title']}: {row['value']:+.3f} against {other['title']}; {why}.")
    p = row.get("p_holm") if row.get("p_holm") is not None else row["p"]
    corrected = " corrected" if row.get("p_holm") is not None else ""
    told = (
        f"{name} of {one['title']}: {row['value']:+.3f} against {other['title']} ({confidence(results)} interval "
        f"{row['low']:+.3f} to {row['high']:+.3f}{f', {p_of(p)}{corrected}' if p is not None else ''})."
    )
    if row.get("detectable") is not None and p is not None and p >= 1 - results["bootstrap"]["confidence"]:
        before = " before the correction" if corrected else ""
        told += f" With as many such {units} the smallest difference found four times in five{before} is "
        told += f"{row['detectable']:.3f}."
    return text(told)


def _external(results: Results) -> Html:
    """How the model did where it was trained, beside how it does here."""
    test, there = first_model(results)["test"], (results.get("trained_on") or {}).get("name", "the training data")
    told, units = [], patient_units({"dataset": results.get("trained_on")})
    for name in ("auroc", "balanced_accuracy"):
        before = where_trained(name, results)
        if before is not None:
            part = "sensitivity" if name == "balanced_accuracy" else name
            over = [label for label, row in test["per_class"].items() if _defined(row[part])]
            left_out = len(over) < len(test["per_class"])
            which = f" (both over what is known here: {listed(over)})" if left_out else ""
            told.append(f"{title_of(name, results)} {value_of(test[name])} here, {before:.3f} on the test {units} of "
                        f"{there}{which}.")  # fmt: skip
    return join(paragraph(sentence) for sentence in told)


def where_trained(name: str, results: Results) -> float | None:
    """AUROC or balanced accuracy on the test patients of the training data, over the labels that are defined here.

    None where it is undefined, here or there, or not known of each label, as in results of earlier versions.
    """
    test, there = first_model(results)["test"], results.get("trained_on_per_class")
    if there is None or not _defined(test.get(name)):
        return None
    parts = (name,)
    if name == "balanced_accuracy":
        parts = ("sensitivity",) if label_kind(results) == "multiclass" else ("sensitivity", "specificity")
    means = []
    for part in parts:
        values = [there[label][part] for label, row in test["per_class"].items() if _defined(row[part])]
        if None in values:
            return None
        means += [fmean(values)] if values else []
    return fmean(means)


def _counts(results: Results) -> dict[str, Any]:
    cohort = results["cohort"]
    return cohort.get("test") or next(iter(cohort.values()))
