"""report.html: a results folder as one page that a clinician and a reviewer can both read, and its figures as files.

The page is made of what lies in the folder (`results.json`, `predictions.parquet`, `config.json`, `model/`), the
dataset's images and, where they are given, an efficiency result and evaluations on other datasets. A part of them that
is not there leaves its section out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clusters.storage import Folder
from clusters.tracking import say
from data.dataset import Dataset
from data.page import EMPTY, Html, Section, note, page
from finetune.report.classes import by_class, calibration, confusion
from finetune.report.comparison import comparison
from finetune.report.drawings import Drawing
from finetune.report.evidence import Evidence, decisions, read_evidence
from finetune.report.figure_files import write_figures
from finetune.report.groups import label_efficiency, other_hospitals, subgroups, unseen
from finetune.report.headline import headline, lead
from finetune.report.model_card import model_card
from finetune.report.pictures import looked_at, mistakes, pictures_of
from finetune.report.reproduce import reproduce
from finetune.report.study import cohort, lineage, method
from finetune.report.words import Results, first_model, label_kind, with_own_titles

REPORT, PREDICTIONS, CONFIG, MODEL_CARD = "report.html", "predictions.parquet", "config.json", "model/model.json"


@dataclass(frozen=True)
class Beside:
    """What a page may show besides its own results: none of it is needed.

    `model` takes RGB images in 0..1 (B, 3, H, W) of `size_px` and gives logits (B, K); `efficiency` is as
    `label_efficiency` takes it; `external` are the results of evaluations on other datasets.
    """

    model: Any = None
    size_px: int = 0
    efficiency: dict[str, Any] | None = None
    external: Sequence[Results] = ()


def write_report(out: Folder, results: Results, dataset: Dataset | None, beside: Beside | None = None) -> None:
    """Write `report.html` and `figures/` into a results folder; without a dataset there are no pictures."""
    content, drawings = report_page(out, results, dataset, beside or Beside())
    write_figures(out, drawings)
    out.write(REPORT, content.encode())


def report_page(out: Folder, results: Results, dataset: Dataset | None, beside: Beside) -> tuple[str, list[Drawing]]:
    """The page, which loads nothing from anywhere, and the drawings on it."""
    results, *external = _with_own_names([with_own_titles(results), *beside.external])
    where = out.file(PREDICTIONS)
    evidence = read_evidence(out.read(PREDICTIONS), results, where) if out.exists(PREDICTIONS) else None
    config = out.read_json(CONFIG).get("config") if out.exists(CONFIG) else None
    card = out.read_json(MODEL_CARD) if out.exists(MODEL_CARD) else None
    drawn: list[tuple[str, tuple[Html, list[Drawing]]]] = [
        ("By class", by_class(results, evidence)),
        ("Confusion", confusion(results)),
        ("Can the probabilities be believed?", calibration(results)),
        ("Compared with" if len(results["models"]) > 1 else "All figures", comparison(results)),
        ("Subgroups", subgroups(results)),
        ("Other hospitals", other_hospitals(external)),
        ("With fewer labels", label_efficiency(beside.efficiency)),
    ]
    errors, looked = _pictures(results, evidence, dataset, beside)
    parts = [
        ("Result", headline(results)),
        *((title, body) for title, (body, _) in drawn),
        ("Cases unlike the training data", unseen(results)),
        ("Errors worth looking at", errors),
        ("Where it looked", looked),
        ("Who was studied", cohort(results)),
        ("Data and lineage", lineage(results)),
        ("Model card", model_card(results, card)),
        ("How it was done", method(results, results.get("pooling") or (card or {}).get("pooling"))),
        ("Reproduce", reproduce(results, config)),
    ]
    sections = [Section(title, body) for title, body in parts if body]
    title = f"{results['dataset']['name']}: {first_model(results)['title']}"
    return page(title, sections, lead(results)), [drawing for _, (_, found) in drawn for drawing in found]


def _with_own_names(all_results: list[Results]) -> list[Results]:
    """The same results, different datasets of one name told apart by the first characters of their fingerprints."""
    places = ("dataset", "trained_on")
    datasets = [one[place] for one in all_results for place in places if one.get(place)]
    fingerprints: dict[str, set[str]] = {}
    for dataset in datasets:
        fingerprints.setdefault(dataset["name"], set()).add(dataset.get("fingerprint", ""))

    def named(dataset: dict[str, Any]) -> dict[str, Any]:
        if len(fingerprints[dataset["name"]]) == 1:
            return dataset
        return {**dataset, "name": f"{dataset['name']} ({dataset.get('fingerprint', '')[:8]})"}

    return [{**one, **{place: named(one[place]) for place in places if one.get(place)}} for one in all_results]


def model_of(out: Folder) -> tuple[Any, int]:
    """The model of a results folder and the side of its images, px; None where the folder has none."""
    from finetune.model_folder import load_model

    if not out.exists(MODEL_CARD):
        return None, 0
    model = load_model(out.location)
    return model, model.card.size_px


def _pictures(
    results: Results, evidence: Evidence | None, dataset: Dataset | None, beside: Beside
) -> tuple[Html, Html]:
    """The mistakes and the maps; a model that cannot be seen into leaves the maps out and says so."""
    if evidence is None or dataset is None:
        return EMPTY, EMPTY
    found = pictures_of(dataset, evidence, decisions(evidence, results), label_kind(results) == "multiclass")
    errors = mistakes(found)
    if beside.model is None:
        return errors, EMPTY
    try:
        looked = looked_at(found, beside.model, beside.size_px)
    except Exception as error:  # networks are of many forms: the results are whole without their maps
        say(f"no maps of where the model looked ({type(error).__name__}: {error})")
        looked = None
    return errors, looked or note("This network has neither maps nor attention that can be shown.")
