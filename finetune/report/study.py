"""Who was studied, what the model was made from, and how it was done."""

import json
from typing import Any

from data.page import EMPTY, Html, folded, join, pairs, paragraph, table, tag
from finetune.heads import POOLING
from finetune.report.words import Results, confidence, drawn, patient_unit

SPLITS = {"train": "training", "val": "validation", "test": "test", "external": "evaluated"}


def cohort(results: Results) -> Html:
    """Patients, cases and images of each split, and how many cases each class has."""
    splits = results["cohort"]
    names = {"patients": f"{patient_unit(results)}s", "cases": "cases", "images": "images"}
    rows: list[list[Any]] = [
        [shown, *(f"{splits[split][name]:,}" for split in splits)]
        for name, shown in names.items()
        if shown != "cases" or name == "cases"  # where cases count as patients, they stand there once
    ]
    classes = dict.fromkeys(name for split in splits.values() for name in split.get("cases_per_class", {}))
    for name in classes:
        counts = (split.get("cases_per_class", {}).get(name) for split in splits.values())
        rows.append([f"cases: {name}", *(None if count is None else f"{count:,}" for count in counts)])
    part = drawn(results)
    caption = f"Labelled images used; of those to train on, {part}." if part else "Labelled images used."
    return table(["", *(SPLITS.get(split, split) for split in splits)], rows, caption)


def lineage(results: Results) -> Html:
    """The dataset, and the encoders with all that they were pretrained on."""
    dataset = results["dataset"]
    told = {name: dataset.get(name) for name in ("name", "source", "citation", "licence")}
    parts = [tag("h3", "Evaluated on"), pairs({**told, "fingerprint": tag("code", dataset["fingerprint"])})]
    if trained := results.get("trained_on"):
        told = {name: trained.get(name) for name in ("name", "source", "citation", "licence")}
        found = {**told, "fingerprint": tag("code", trained.get("fingerprint"))}
        parts += [tag("h3", "Trained on, with labels"), pairs(found)]
    first, *baselines = (_made_from(model) for model in results["models"].values())
    return join([*parts, first, folded("Baselines", join(baselines)) if baselines else EMPTY])


def _made_from(model: dict[str, Any]) -> Html:
    parts = [tag("h3", model["title"]), pairs({"fingerprint": tag("code", model["fingerprint"])})]
    if model.get("lineage"):
        rows = [
            [
                stage["stage"],
                origin["name"],
                f"{origin['images']:,}",
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


def method(results: Results, pooling: str | None) -> Html:
    """How figures and intervals came about, in a reviewer's words; `pooling`: how a case's answer is made, if known."""
    resampling, times = results["bootstrap"], results.get("test_evaluations")
    how = resampling.get("interval", "percentiles of the resamples")
    corrected = any(row.get("p_holm") is not None for row in results["comparisons"])
    delong = any(row.get("p_delong") is not None for row in results["comparisons"])
    unit = patient_unit(results)
    none = "" if unit == "patient" else ", which stands for the patient everywhere here: the dataset tells of none"
    texts = [
        f"{_answer_of_a_case(pooling)}All figures are of cases. Splits are by {unit}{none}. Everything that "
        "was chosen (regularisation or epoch, temperature, and decision thresholds) was chosen on validation.",
        f"Intervals: {confidence(results)}, from {resampling['resamples']} bootstrap resamples of whole {unit}s, "
        f"drawn within strata of the {unit}'s rarest class; how many {unit}s each stratum has is drawn too, since "
        f"it differs from study to study. {how[0].upper()}{how[1:]}. Differences are taken between models on the same "
        f"resamples. They say how the figures would vary with other {unit}s, not with another seed "
        f"of the training.{'' if corrected else ' P-values are not corrected for several comparisons.'}",
    ]
    if corrected:
        texts.append("P-values are also given corrected for several comparisons after Holm (1979): over the models for "
                     "each figure, over models and classes for the AUROC of single classes, over models and numbers "
                     "for figures of numbers. What is corrected is the p that belongs to the interval.")  # fmt: skip
    if delong:
        texts.append("DeLong's test (1988) stands beside it, uncorrected, where every one of them has one case, as it "
                     "takes cases to be independent.")  # fmt: skip
    if times is not None:
        texts.append(
            f"The test split was evaluated {times} time{'s' if times != 1 else ''} with this recipe in this folder."
        )
    identity = json.dumps(results["identity"], indent=2)
    return join([*(paragraph(t) for t in texts), folded("Config", tag("pre", identity, {"tabindex": 0}))])


def _answer_of_a_case(pooling: str | None) -> str:
    """A sentence, or nothing where it is not known."""
    if pooling is None:
        return ""
    by_image = POOLING["none"]
    others = "" if pooling == by_image else f" (of PCA, ORB and nearest neighbours: {by_image})"
    return f"A case's answer: {pooling}{others}. "
