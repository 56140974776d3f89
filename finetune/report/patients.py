"""What the model says of people rather than of cases, where some have several."""

from data.page import EMPTY, Html, join, paragraph, table
from finetune.patients import DECIDED, RANKED
from finetune.report.drawings import Drawing, forest_drawing
from finetune.report.words import NAMES, Results, first_model, patient_unit, shown, title_of


def by_patient(results: Results) -> tuple[Html, list[Drawing]]:
    """Figures of each label by patient, and the models beside each other; empty where each patient has one case."""
    found = first_model(results)["test"].get("by_patient")
    if not found:
        return EMPTY, []
    unit = patient_unit(results)
    told = (
        f"The {found['patients']:,} {unit}s as wholes: one has a condition where any of its cases has it, with the "
        "probability of the likeliest case."
    )
    names = [name for name in (*RANKED, *DECIDED) if name in found]
    if DECIDED[0] in names:
        told += f" A {unit} is called positive where any case is, so the more cases, the sooner."
    rows = [
        [label, row["positives"], row["negatives"], *(shown(row[name], digits=_digits(name)) for name in names)]
        for label, row in found["per_class"].items()
    ]
    header = ["", f"{unit}s with it", "without", *(NAMES[name] for name in names)]
    parts = [paragraph(told), table(header, rows, first_model(results)["title"])]
    models = {m["title"]: m["test"]["by_patient"] for m in results["models"].values() if m["test"].get("by_patient")}
    if len(models) > 1:
        beside = [[title, *(shown(row[name]) for name in RANKED)] for title, row in models.items()]
        parts.append(table(["", *(f"{title_of(name, results)} by {unit}" for name in RANKED)], beside))
    drawing = forest_drawing("patients-auroc", f"AUROC by {unit}", [(t, row["auroc"]) for t, row in models.items()])
    return join(parts), [drawing] if drawing else []


def _digits(name: str) -> int:
    return 2 if name in DECIDED else 3
