"""The model card (Mitchell et al., 2019) with the fields of TRIPOD+AI and CLAIM that a run can fill.

What a run cannot know (ethics, funding, how patients came to be in the data) is listed as the authors' to state, so
that nobody takes a page for a paper.
"""

from collections.abc import Mapping
from typing import Any

from data.page import Content, Html, folded, join, pairs, paragraph, table, tag
from data.uncertain import SMOOTH
from finetune.cohort import COPIES, LEAKAGE
from finetune.report.words import (
    Figure,
    Results,
    calibration_mark,
    confidence,
    counted,
    covered,
    drawn,
    first_model,
    interval_of,
    label_kind,
    label_names,
    listed,
    number_names,
    patient_unit,
    patient_units,
    shown,
    title_of,
    value_of,
)
from finetune.terms import NOT_FOR

CHECKLISTS = "Reporting checklists: TRIPOD+AI (Collins et al., 2024) and CLAIM (Tejani et al., 2024)"
OURS, AUTHORS = "on this page", "for the authors to state"
Model = Mapping[str, Any]
Item = tuple[str, str, str]


def model_card(results: Results, model: Model | None) -> Html:
    """The card; `model` is model.json where the model is at hand."""
    parts = [
        tag("h3", "The model"), pairs(_details(results, model)),
        tag("h3", "Intended use"), *map(paragraph, _intended(results)),
        tag("h3", "Not for"), *map(paragraph, _not_for(results)),
        tag("h3", "What is known of it"), pairs(_known(results)),
        tag("h3", "Limits"), *map(paragraph, _limits(results)),
        folded(CHECKLISTS, table(["item", "what", "where"], [*_methods(results), *_results(results)], numeric=False)),
    ]  # fmt: skip
    return join(parts)


def _details(results: Results, model: Model | None) -> dict[str, Content]:
    first, labels, numbers = first_model(results), label_names(results), number_names(results)
    stages = [f"{stage['stage']} on {listed([o['name'] for o in stage['datasets']])}" for stage in first["lineage"]]
    told: dict[str, Content] = {
        "what it is": first["title"],
        "network": first.get("architecture"),
        "head": "linear, on the frozen encoder"
        if first.get("head") == "linear"
        else "encoder and head trained together",
        "pretrained": "; ".join(stages) or "not by Manyview",
        "trained on, with labels": (results.get("trained_on") or results["dataset"])["name"],
        "output": f"a probability of {'each of ' if len(labels) > 1 else ''}{listed(labels)}"
        + (f", and an estimate of {listed(numbers)}" if numbers else ""),
    }
    if model:
        size = model.get("size_px") or (model.get("input") or {}).get("size_px")
        told["input"] = f"images of any size; their largest centred square at {size} px" if size else None
        told["a case's images"] = model.get("pooling")
        told["speed, one image"] = _latency(model.get("latency"))
    licence = (results.get("trained_on") or results["dataset"]).get("licence")
    told["licence"] = f"what is made from the data is bound by theirs: {licence}" if licence else None
    evaluated = results["identity"].get("model") if results.get("kind") == "external" else None
    told["fingerprint"] = tag("code", (model or {}).get("fingerprint") or evaluated or first["fingerprint"])
    return {name: value for name, value in told.items() if value is not None}


def _latency(rows: Any) -> str | None:
    """What the model folder says of the time for one image, whatever it was measured on."""
    if not rows:
        return None
    said = []
    for row in rows if isinstance(rows, list) else [rows]:
        values = row.items() if isinstance(row, Mapping) else []
        said.append(", ".join(f"{k.replace('_', ' ')} {v:.3g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
                              for k, v in values))  # fmt: skip
    return "; ".join(said)


def _intended(results: Results) -> list[str]:
    name = (results.get("trained_on") or results["dataset"])["name"]
    return [
        f"Research: measuring how well {_outcomes(results)} can be read from images like those of {name}, comparing "
        "encoders, and choosing what to study further.",
        "Who reads its answers should know the images and the condition; the answer is a second look, never the "
        "only one.",
    ]


def _not_for(results: Results) -> list[str]:
    chooses = "it must choose among these, and " if label_kind(results) == "multiclass" else "it "
    return [
        NOT_FOR,
        f"Conditions other than {listed(label_names(results))}: {chooses}says nothing of others. "
        "Images of another kind, or of poor quality, get an answer too.",
        "Patients, devices, hospitals or skin tones that were not measured here, before they are.",
    ]


def _known(results: Results) -> dict[str, Content]:
    model = first_model(results)
    test = model["test"]
    counts = results["cohort"].get("test") or next(iter(results["cohort"].values()))
    told: dict[str, Content] = {
        "tested on": f"{counted(counts['patients'], patient_unit(results))}, {counted(counts['cases'], 'case')}, "
        f"{counted(counts['images'], 'image')} of {results['dataset']['name']}",
    }
    for name in ("auroc", "auprc", "balanced_accuracy", "ece"):
        if test.get(name):
            told[title_of(name, results) + calibration_mark(name, model)] = _measured(test[name], results)
    for name, row in (test.get("numbers") or {}).items():
        told[f"{name}: mean absolute error"] = _measured(row["mae"], results)
    subgroups = test.get("subgroups") or {}
    groups = list(subgroups)
    told["groups judged"] = listed(groups) if groups else "none: who it fails for is not known"
    gaps = [f"{attribute} {shown(gap)}{covered(gap, results)}" for attribute, row in subgroups.items()
            if (gap := (row.get("gaps") or {}).get("auroc")) and gap["value"] is not None]  # fmt: skip
    if gaps:
        told["gaps in AUROC"] = "; ".join(gaps)
    if model.get("temperature"):
        bad = "not calibrated: the temperature is at its bound"
        told["probabilities"] = bad if calibration_mark("ece", model) else "calibrated on validation (temperature)"
    return {name: value for name, value in told.items() if value is not None}


def _measured(found: Figure, results: Results) -> str:
    """A figure with its interval or, where it has none, with what chance alone gives if that is told."""
    if found.get("low") is not None:
        return f"{shown(found)}, {confidence(results)} interval"
    return ", ".join(filter(None, [value_of(found), interval_of(found, results)]))


def _limits(results: Results) -> list[str]:
    seed = " One training is shown: the intervals do not hold what another seed of the training would change."
    texts = [
        "Figures hold for patients, devices and disease frequencies like those of the data they were measured on; "
        "predictive values change with how common a condition is. Classes that few patients have, or are without, have "
        "wide intervals that may still be too narrow.",
        "Labels are those of the source, with their mistakes." + (seed if _depends_on_seed(results) else ""),
        f"Leakage was looked for by comparing {patient_unit(results)}s by id (keyed, or as published) and images by "
        "exact pixels; a copy of an image that was encoded again or cropped, under another id, is not found.",
        *(f"Found: {warning.removeprefix(COPIES)}." for warning in results["warnings"] if warning.startswith(COPIES)),
        "This page holds images of the dataset: its licence and the protection of its patients hold for the page too.",
    ]
    recipe = results["identity"].get("recipe", {})
    if (recipe.get("precision"), recipe.get("head")) == ("bf16", "linear"):
        texts.append("Figures are of features in bf16; predict computes them in fp32, so that its probabilities differ "
                     "from these in the third decimal or so.")  # fmt: skip
    if results.get("kind") != "external":
        texts.insert(1, f"Tested on {patient_units(results)} of the dataset that it was trained on. Other hospitals, "
                        "where they are not on this page, were not tried.")  # fmt: skip
    return texts


def _depends_on_seed(results: Results) -> bool:
    """Whether a training draws anything: a linear head that is solved on all labels does not."""
    recipe = results["identity"].get("recipe", {})
    linear, policy = recipe.get("linear") or {}, recipe.get("uncertain")
    by_chance = (
        linear.get("sgd") or linear.get("pooling") in ("max", "attention") or recipe.get("label_fraction", 1) < 1
    )
    smoothed = any(one in SMOOTH for one in (policy.values() if isinstance(policy, dict) else [policy]))
    return first_model(results).get("head") != "linear" or bool(by_chance) or smoothed


def _outcomes(results: Results) -> str:
    return listed([*label_names(results), *number_names(results)])


def _methods(results: Results) -> list[Item]:
    """TRIPOD+AI's items on question and methods, CLAIM's topics beside them, and where each is answered."""
    part = drawn(results)
    leaked = any(warning.startswith(LEAKAGE) for warning in results["warnings"])
    met = "what was used here saw some of test, see Result" if leaked else "encoders that saw those of test are refused"
    source = results["dataset"].get("source") or results["dataset"]["name"]
    return [
        ("1", "title: model, population, outcome", f"{OURS}, first line"),
        ("3, 4", "background, care pathway, health inequalities, objectives", AUTHORS),
        ("5a", "data: source, and why it represents the patients", f"{source}; why it represents them: {AUTHORS}"),
        ("5b, 6", "dates, setting, eligibility, treatments", AUTHORS),
        ("7", "preparing the data; CLAIM: preprocessing, de-identification",
         "images re-encoded without metadata, largest centred square, standardised; the manifest says the rest"),
        ("8", "outcome; CLAIM: reference standard, annotators, their agreement",
         f"{_outcomes(results)} as the source gives them; how they were made: {AUTHORS}"),
        ("9", "predictors", "pixels alone; no clinical field is read"),
        ("10", "sample size", f"all labelled {patient_units(results)}{part and f', to train on {part}'}; "
                              "the intervals say what it is enough for"),
        ("11", "missing data", "images without a label, or with a doubtful one in validation and test, are left out"),
        ("12a", "how data were split; CLAIM: level at which partitions are disjoint",
         f"by {patient_unit(results)}, by a keyed hash or the official split; by id and exact pixels, {met}"),
        ("12c", "the model and its making; CLAIM: initialisation, training, selection", f"{OURS}: lineage, config"),
        ("12e", "measures of performance; CLAIM: uncertainty", f"{OURS}: how it was done"),
        ("12g", "how predictions are computed", "model/ in the results folder, by python -m finetune predict"),
        ("13", "class imbalance", _imbalance(results)),
    ]  # fmt: skip


def _results(results: Results) -> list[Item]:
    """The same of the items on results and what is made of them."""
    groups = first_model(results)["test"].get("subgroups")
    fairness = f"{OURS}: subgroups" if groups else f"not measured: no attribute was; {AUTHORS}"
    external = OURS if results.get("kind") == "external" else "python -m finetune evaluate, on any number of datasets"
    return [
        ("14, 23a", "fairness, performance in subgroups", fairness),
        ("15", "output and thresholds", f"{OURS}: by class"),
        ("16", "training against evaluation data", f"{OURS}: who was studied"),
        ("17, 18, 19", "ethics, funding, conflicts, protocol, registration, sharing, patients' part", AUTHORS),
        ("20, 21", "participants, flow, events", f"{OURS}: who was studied; exclusions before the import: {AUTHORS}"),
        ("22", "model specification", "model/ in the results folder, whole"),
        ("23", "performance with intervals", f"{OURS}: result, by class; results.json has all of it"),
        ("24", "updating", "none"),
        ("25, 26, 27", "interpretation, limitations, use", f"{OURS}: limits; interpretation: {AUTHORS}"),
        ("CLAIM", "failure analysis; explainability", f"{OURS}: errors worth looking at, where it looked"),
        ("CLAIM", "testing on external data", external),
        ("CLAIM", "software", f"{OURS}: reproduce"),
    ]


def _imbalance(results: Results) -> str:
    weighting = results["identity"].get("recipe", {}).get("class_weighting")
    chosen = {"balanced": "every class weighs the same in the loss", "none": "no weights in the loss"}
    told = chosen.get(str(weighting), f"class_weighting {weighting}" if weighting else "as trained")
    return f"{told}; AUPRC and balanced accuracy are given beside AUROC"
