"""How figures are written: with their intervals, and in words that a clinician reads without a glossary."""

from typing import Any

from finetune.calibration import is_uncalibrated
from finetune.comparisons import OF_PROBABILITIES
from finetune.labels_saved import percent

Figure = dict[str, Any]
Results = dict[str, Any]

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "top1": "top-1 accuracy",
    "accuracy": "accuracy",
    "top3": "top-3 accuracy",
    "brier": "Brier score",
    "ece": "ECE",
    "mae": "MAE",
    "rmse": "RMSE",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
MEANINGS = {
    "auroc": "of two cases, one with and one without, how often the one with gets the higher probability",
    "auprc": "precision over all sensitivities; chance is the share of positives",
    "balanced_accuracy": "share decided rightly, every class weighing the same",
    "top1": "share whose likeliest class is the true one",
    "accuracy": "share decided rightly at the threshold chosen on validation",
    "top3": "share whose true class is among the three likeliest",
    "f1": "harmonic mean of precision and sensitivity",
    "brier": "mean squared error of the probabilities; 0 is best",
    "ece": "how far probabilities are from what happens; 0 is best",
    "mae": "mean absolute error",
}
SMALLER_IS_BETTER = ("brier", "ece", "mae", "rmse")
MACRO = ("auroc", "auprc", "f1", "sensitivity", "specificity")
"""Figures of a class each, whose mean over classes stands for the model."""


def first_model(results: Results) -> dict[str, Any]:
    """The model that the page is about; the others are what it is compared with."""
    return next(iter(results["models"].values()))


def number_names(results: Results) -> list[str]:
    """The outcomes that are numbers."""
    return list(first_model(results)["test"].get("numbers") or {})


def label_names(results: Results) -> list[str]:
    """The outcomes that are labels: of two heads, those of the classification."""
    numbers = number_names(results)
    return [name for name in results["labels"] if name not in numbers]


def label_kind(results: Results) -> str:
    """What the labels are: binary, multilabel or multiclass; of two heads, those of the classification."""
    if results["task"] != "two_heads":
        return results["task"]
    if not results["classes"]:
        return "multilabel"
    return "binary" if len(label_names(results)) == 1 else "multiclass"


def in_words(name: str, yes_or_no: bool) -> str:
    """The name of a figure under NAMES and MEANINGS: `top1` of one yes-or-no label is at its threshold."""
    return "accuracy" if name == "top1" and yes_or_no else name


def name_of(name: str, results: Results) -> str:
    """A figure's name within a sentence or a table."""
    return NAMES[in_words(name, label_kind(results) == "binary")]


def meaning_of(name: str, results: Results) -> str | None:
    """What a figure says, for who does not know it."""
    return MEANINGS.get(in_words(name, label_kind(results) == "binary"))


def title_of(name: str, results: Results) -> str:
    """A figure's name at the head of something."""
    told = name_of(name, results)
    if name in MACRO and len(label_names(results)) > 1:
        return f"Macro {told}"
    return told[0].upper() + told[1:]


def calibration_mark(name: str, model: dict[str, Any]) -> str:
    """What is added to a figure of probabilities of a model whose temperature is at its bound; else nothing."""
    bad = name in OF_PROBABILITIES and is_uncalibrated(model.get("temperature"))
    return " (not calibrated)" if bad else ""


def with_own_titles(results: Results) -> Results:
    """The same results, models of equal title told apart by their names; the first keeps its title."""
    titles = [model["title"] for model in results["models"].values()]
    models = {
        name: {**model, "title": f"{model['title']} ({name})"} if titles.count(model["title"]) > 1 and number else model
        for number, (name, model) in enumerate(results["models"].items())
    }
    return {**results, "models": models}


def shown(figure: Figure | None, signed: bool = False, digits: int = 3) -> str:
    """`0.861 (0.845 to 0.876)`, or `undefined`."""
    if figure is None or figure["value"] is None:
        return "undefined"
    sign = "+" if signed else ""
    if figure.get("low") is None:
        return f"{figure['value']:{sign}.{digits}f} (no interval)"
    return f"{figure['value']:{sign}.{digits}f} ({figure['low']:{sign}.{digits}f} to {figure['high']:{sign}.{digits}f})"


def value_of(figure: Figure) -> str:
    """The figure alone."""
    return "undefined" if figure["value"] is None else f"{figure['value']:.3f}"


def interval_of(figure: Figure, results: Results) -> str:
    """`95 % interval 0.845 to 0.876`; what chance gives where that is told instead; or nothing."""
    if figure.get("low") is None:
        return "" if figure.get("by_chance") is None else f"by chance alone {figure['by_chance']:.3f}"
    return f"{confidence(results)} interval {figure['low']:.3f} to {figure['high']:.3f}"


def in_percent(figure: Figure) -> str:
    """`76.9 % (74.3 to 79.5)`."""
    value = f"{100 * figure['value']:.1f} %"
    if figure.get("low") is None:
        return value
    return f"{value} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def confidence(results: Results) -> str:
    """`95 %`."""
    return f"{100 * results['bootstrap']['confidence']:g} %"


def p_of(p: float | None) -> str | None:
    """A p-value; None, a dash in tables, where there is none."""
    if p is None:
        return None
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 case`, `1,044 cases`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def patient_unit(results: Results) -> str:
    """What counts as a patient: `lesion`, say, where the dataset does not tell who is who."""
    return str((results.get("dataset") or {}).get("patient_unit", "patient"))


def patient_units(results: Results) -> str:
    """The same of several: `lesions`."""
    return f"{patient_unit(results)}s"


def covered(gap: dict[str, Any], results: Results) -> str:
    """`, of 2 of 8 groups, with 212 patients in the others`: what a gap says nothing of; empty where it is of all."""
    groups, of_groups = gap.get("groups"), gap.get("of_groups")
    if groups is None or groups == of_groups:  # results of earlier versions do not tell
        return ""
    others = counted(gap["patients_in_others"], patient_unit(results))
    return f", of {groups} of {of_groups} groups, with {others} in the others"


def drawn(results: Results) -> str:
    """`12 of 480 patients (2.5 %)`: of those with labels, how many training drew; empty where all of them."""
    train = results["cohort"].get("train", {})
    patients, of_patients = train.get("patients"), train.get("of_patients")
    if of_patients is None:  # results of earlier versions
        fraction = results["identity"].get("recipe", {}).get("label_fraction", 1)
        return f"{percent(fraction)} of the {patient_unit(results)}s, as asked for" if fraction < 1 else ""
    if patients == of_patients:
        return ""
    return f"{patients:,} of {of_patients:,} {patient_unit(results)}s ({percent(patients / of_patients)})"


def listed(words: list[str], most: int = 14) -> str:
    """`a, b and c`; long lists end in how many more there are."""
    if len(words) > most:
        return ", ".join(words[:most]) + f" and {len(words) - most} more"
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
