"""A results folder's page in a real browser, and its figures as files, against the numbers that they show."""

import copy
import csv
import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from playwright.sync_api import Browser
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.dataset import Dataset
from finetune.__main__ import COMMANDS
from finetune.cohort import COPIES
from finetune.config import FinetuneConfig
from finetune.delong import delong
from finetune.report import pictures
from finetune.report.classes import by_class, calibration
from finetune.report.command import run as make_page
from finetune.report.comparison import comparison
from finetune.report.drawings import curve_drawing, precision_recall_drawing, reliability_drawing, roc_drawing, slug
from finetune.report.evidence import Evidence, decisions, read_evidence
from finetune.report.figure_files import standalone
from finetune.report.headline import headline, where_trained
from finetune.report.model_card import model_card
from finetune.report.page import Beside, write_report
from finetune.report.pictures import mistakes, overlaid, pictures_of
from finetune.report.reproduce import _baselines, command
from finetune.report.words import first_model, listed
from finetune.report.words import shown as in_words
from finetune.reported import Reported
from finetune.run import finetune
from finetune.sealed import sealed
from tests.browser import DESKTOP, PHONE, WIDEST, contrast, opened
from tests.finetune_results import EFFICIENCY, external, figure, whole
from tests.finetune_runs import recipe, write_encoder
from tests.test_data_page import Outline
from tests.test_finetune_intervals import one_label, resampled

SIZE_PX = 64
Made = tuple[Path, dict[str, Any], Evidence]


class Looking(nn.Module):
    """A small model to look into: images in 0..1 to as many logits as are asked for."""

    def __init__(self, name: str, num_labels: int, **options: Any) -> None:
        import timm

        super().__init__()
        torch.manual_seed(0)
        self.encoder = timm.create_model(name, num_classes=0, **options)
        self.head: nn.Module = nn.LazyLinear(num_labels)
        self.head(self.encoder(torch.zeros(1, 3, 64, 64)))
        self.eval()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder((images_BCHW - 0.5) / 0.25))


@pytest.fixture(scope="module")
def finished(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished linear run with two baselines; not to be altered."""
    folder = tmp_path_factory.mktemp("report")
    encoder = write_encoder(folder / "encoder", synthetic_dataset)
    config = recipe(
        synthetic_dataset, encoder, folder / "out", head="linear",
        baselines=["untrained", write_encoder(folder / "other", synthetic_dataset, seed=1)], class_weighting="balanced",
    )  # fmt: skip
    finetune(config)
    results = json.loads((folder / "out/results.json").read_text())
    evidence = read_evidence((folder / "out/predictions.parquet").read_bytes(), results)
    assert evidence is not None
    return folder / "out", results, evidence


@pytest.fixture(scope="module")
def page(finished: Made, synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section that there is."""
    out, results, evidence = finished
    folder = tmp_path_factory.mktemp("whole") / "out"
    shutil.copytree(out, folder)
    told = whole(results, evidence)
    beside = Beside(Looking("test_resnet", 5), SIZE_PX, EFFICIENCY, [external(told)])
    write_report(Folder(folder), told, synthetic_dataset, beside)
    return folder


def test_eight_lines_differ_in_colour_and_in_dash() -> None:
    """So that they are told apart on a screen, in grey print, and by who sees colours otherwise."""
    curves = {
        f"model {n}": [{"x": x, "value": 0.5 + n / 20, "low": None, "high": None} for x in (0.1, 1)] for n in range(8)
    }
    drawing = curve_drawing("efficiency", "eight", curves, "share", "AUROC")
    assert drawing is not None
    svg = standalone(drawing)
    seen: set[str] = set()
    for number in range(8):
        assert len(re.findall(rf'class="series-{number}"', svg)) == 2, "a line, and its key"
        (rule,) = re.findall(rf"\.series-{number}{{(stroke:[^}}]*)}}", svg)
        told = dict(part.split(":") for part in rule.split(";"))
        for what in (told["stroke"], told.get("stroke-dasharray", "solid")):
            assert what not in seen
            seen.add(what)


SECTIONS = [
    "Result", "By class", "Confusion", "Can the probabilities be believed?", "Compared with", "Subgroups",
    "Other hospitals", "With fewer labels", "Errors worth looking at", "Where it looked", "Who was studied",
    "Data and lineage", "Model card", "How it was done", "Reproduce",
]  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_the_page_fits_speaks_and_loads_nothing(page: Path, browser: Browser, width: int, scheme: str) -> None:
    shown = opened(browser, page / "report.html", width, scheme)
    assert shown.texts("h2") == SECTIONS
    assert shown.left_the_page() == [] and shown.complaints == []
    assert shown.overflow_px() == 0
    pictures = shown.pictures()
    assert len(pictures) >= 20 and all(size > 0 and alt for size, alt in pictures)
    drawings = shown.page.locator("svg[role=img]")
    assert drawings.count() >= 3 * 5 + 1
    assert all(drawings.nth(n).get_attribute("aria-label") for n in range(drawings.count()))
    assert shown.page.evaluate(WIDEST) <= width
    for selector in (".lead b", ".lead.small", "figcaption", "summary", ".tiles strong", ".strip figcaption"):
        assert contrast(shown.page, selector) >= 4.5, selector
    shown.page.close()


def test_the_first_screen_says_what_it_does_on_how_many_and_how_sure(
    page: Path, finished: Made, browser: Browser
) -> None:
    shown = opened(browser, page / "report.html")
    results = finished[1]
    counts, test = results["cohort"]["test"], results["models"]["pretrained"]["test"]
    lead = shown.texts("header .lead")[0]
    assert lead.startswith("This model looks at the images of a case and says which of 5 classes it is (")
    assert f"{counts['patients']} patients ({counts['cases']} cases, {counts['images']} images)" in lead
    top1 = test["top1"]
    assert f"{100 * top1['value']:.1f} % ({100 * top1['low']:.1f} to {100 * top1['high']:.1f})" in lead
    assert shown.texts("#part-1 .tiles strong")[0] == f"{test['auroc']['value']:.3f}"
    assert (
        "reaches the figure of resnet18, untrained with all labels (macro AUROC 0.800) at 16 % of the labels "
        "(draws: 9 % to not reached)" in shown.page.content()
    )
    assert "whether the two differ on other patients was not tested" in shown.page.content()
    assert "the whole validation split chooses the model, and its labels are not counted" in shown.page.content()
    assert shown.page.locator(".tiles").bounding_box()["y"] < 700  # type: ignore[index]
    shown.page.close()


def test_evidence_is_the_cases_of_the_test_split(finished: Made) -> None:
    _, results, evidence = finished
    for name, model in results["models"].items():
        for k, label in enumerate(evidence.labels):
            truth, scores = evidence.truth_NK[:, k], evidence.scores[name][:, k]
            assert model["test"]["per_class"][label]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    decided = decisions(evidence, results)
    cases = results["models"]["pretrained"]["test"]["confusion"]["cases"]
    assert [
        [int((decided.true_NC[:, t] & decided.decided_NC[:, d]).sum()) for d in range(5)] for t in range(5)
    ] == cases


def test_mistakes_stand_by_class_the_surest_first(page: Path, finished: Made, browser: Browser) -> None:
    _, results, evidence = finished
    shown = opened(browser, page / "report.html")
    decided = decisions(evidence, results)
    section = shown.page.locator("section:has(h2:text-is('Errors worth looking at'))")
    titles = section.locator("h3").all_text_contents()
    wrong = 0
    for c, (kind, title) in enumerate(zip(decided.kinds, titles)):
        missed = int((decided.true_NC[:, c] & ~decided.decided_NC[:, c]).sum())
        wrong += missed
        assert title.startswith(f"{kind}: {missed} of {int(decided.true_NC[:, c].sum())} case")
    assert wrong > 0
    shown.page.close()


def test_the_surest_mistake_stands_first(finished: Made, synthetic_dataset: Dataset) -> None:
    _, results, evidence = finished
    scores = np.random.default_rng(0).dirichlet(np.full(5, 0.5), len(evidence.key_N))
    drawn = dataclasses.replace(evidence, scores={"pretrained": scores})
    words = str(mistakes(pictures_of(synthetic_dataset, drawn, decisions(drawn, results), True)))
    strips = [re.findall(r"said \w+<br>\w+ (\d+) %", strip) for strip in words.split("<h3>")[1:]]
    assert sum(map(len, strips)) >= 5 and max(len(set(said)) for said in strips) >= 2
    assert all(said == sorted(said, key=int, reverse=True) for said in strips)
    assert "this image is not in the dataset" not in words


def test_figures_are_files_that_hold_what_they_show(page: Path, finished: Made, browser: Browser) -> None:
    _, results, evidence = finished
    names = {path.stem for path in (page / "figures").glob("*.svg")}
    assert names == {path.stem for path in (page / "figures").glob("*.csv")}
    for kind in ("roc", "pr", "calibration"):
        assert {f"{kind}-{slug(label)}" for label in results["labels"]} <= names
    assert {"confusion", "models-auroc", "classes-auroc", "subgroups-sex", "efficiency", "external-auroc"} <= names
    label = results["labels"][0]
    rows = read_csv(page / f"figures/roc-{label}.csv")
    mine = np.array([[float(x), float(y)] for model, x, y in rows[1:] if model == "test_resnet, simclr"])
    area = np.trapezoid(mine[:, 1], mine[:, 0])
    assert area == pytest.approx(results["models"]["pretrained"]["test"]["per_class"][label]["auroc"]["value"])
    cells = read_csv(page / "figures/confusion.csv")[1:]
    assert sum(int(row[2]) for row in cells) == len(evidence.key_N)
    for name in ("roc-" + slug(label), "confusion", "models-auroc", "efficiency"):
        shown = opened(browser, page / f"figures/{name}.svg")
        assert shown.complaints == [] and shown.left_the_page() == []
        assert shown.page.locator("text").count() >= 5 and "var(" not in shown.page.content()
        inside = "wide => [...document.querySelectorAll('text')].every(t => t.getBoundingClientRect().right <= wide)"
        assert shown.page.evaluate(
            inside, shown.page.evaluate("document.documentElement.getBoundingClientRect().right")
        )
        shown.page.close()


def test_delongs_interval_stands_beside_the_auroc_of_labels_that_have_it(finished: Made, tmp_path: Path) -> None:
    """Of a label whose patients have one case each; of one whose patients have several there is a dash."""
    _, results, evidence = finished
    told = whole(results, evidence)
    one, several, *others = results["labels"]
    per_class = first_model(told)["test"]["per_class"]
    for row in per_class.values():
        row["auroc"].pop("delong", None)
    write_report(Folder(tmp_path / "without"), told, None)
    assert "DeLong" not in str(by_class(told, None)[0])
    assert read_csv(tmp_path / "without/figures/classes-auroc.csv")[0] == ["", "value", "low", "high"]

    truth, scores = evidence.truth_NK[:, 0], evidence.scores["pretrained"][:, 0]
    for label, patients in ((one, None), (several, np.arange(len(truth)) // 2)):
        cases = one_label(truth, scores, patients)
        per_class[label]["auroc"] = Reported(cases, resampled(cases), 0.95).figure("auroc")
    found = delong(truth, scores[None])
    assert found is not None
    low, high = found.interval(0, 0.95) or (1.0, 0.0)
    assert 0 <= low < per_class[one]["auroc"]["value"] < high <= 1
    write_report(Folder(tmp_path / "with"), told, None)
    table = Outline((tmp_path / "with/report.html").read_text())
    words = " ".join(table.words)
    assert words.count("AUROC, DeLong") == 1, "not in the fold of other figures"
    assert f"{in_words(per_class[one]['auroc'])} {low:.3f} to {high:.3f} " in words
    for label in (several, *others):
        assert f"{in_words(per_class[label]['auroc'])} – " in words
    header, *rows = read_csv(tmp_path / "with/figures/classes-auroc.csv")
    assert header == ["", "value", "low", "high", "low, DeLong", "high, DeLong"]
    assert [float(cell) for cell in rows[0][4:]] == pytest.approx([low, high])
    assert [row[4:] for row in rows[1:]] == [["", ""]] * 4


def test_labels_of_any_script_have_files_of_their_own() -> None:
    """A plain name is its file's; one that cannot be written so has something to tell it by."""
    assert [slug(name) for name in ("nevus", "Pleural Effusion", "reduced_ef")] == [
        "nevus", "pleural-effusion", "reduced-ef"
    ]  # fmt: skip
    names = ["黑色素瘤", "色素痣", "меланома", "невус", "ER+", "ER-", "ER", "x" * 70 + "1", "x" * 70 + "2"]
    found = [slug(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in found)


def read_csv(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def test_curves_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(150) < 0.3).astype(float)
    scores = np.round(rng.random(150) + 0.4 * truth, 2)
    drawing = precision_recall_drawing("x", truth, {"m": scores})
    roc = roc_drawing("x", truth, {"m": scores})
    assert drawing is not None and roc is not None
    recall, precision = np.array([row[1:] for row in drawing.rows], dtype=float).T
    average = np.sum(np.diff(np.concatenate([[0], recall])) * precision)
    assert average == pytest.approx(average_precision_score(truth, scores))
    assert roc_drawing("x", np.ones(5), {"m": np.arange(5.0)}) is None
    assert reliability_drawing("x", []) is None


def test_the_command_gives_the_same_recipe_again(finished: Made) -> None:
    out, results, _ = finished
    config = json.loads((out / "config.json").read_text())["config"]
    words, places = command(results, config)
    assert words[:6] == ["python", "-m", "finetune", "data=DATA", "encoder=ENCODER", "out=OUT"]
    assert "baselines=[untrained,BASELINE_2]" in words and "class_weighting=balanced" in words
    again = load_config(FinetuneConfig, words[3:])
    assert again.recipe() == results["identity"]["recipe"]
    assert set(places) == {"DATA", "ENCODER", "BASELINE_2"} and results["dataset"]["fingerprint"] in places["DATA"]
    changed = {**results["identity"]["recipe"], "linear": {"strengths": [1e-05, 0.1]}, "label": "a b: c"}
    other = {**results, "identity": {**results["identity"], "recipe": changed}}
    again = load_config(FinetuneConfig, command(other, None)[0][3:])
    assert (again.linear.strengths, again.label) == ([1e-05, 0.1], "a b: c")


def test_results_of_before_have_a_page_without_what_they_lack(finished: Made, browser: Browser) -> None:
    """Schema 1, as a run leaves it today where nothing measured calibration, subgroups or efficiency."""
    out, results, _ = finished
    old = {key: value for key, value in results.items() if key != "kind"}
    folder = out.parent / "old"
    write_report(Folder(folder), old, None)
    shown = opened(browser, folder / "report.html", PHONE)
    assert shown.overflow_px() == 0 and shown.page.locator("img").count() == 0
    titles = shown.texts("h2")
    assert {"Result", "By class", "Confusion", "Model card", "Reproduce"} <= set(titles)
    assert not {"Errors worth looking at", "Other hospitals", "With fewer labels"} & set(titles)
    assert "a copy of an image that was encoded again or cropped, under another id, is not found." in " ".join(
        shown.texts("p")
    )
    shown.page.close()


def test_an_evaluation_elsewhere_has_its_page(
    finished: Made, synthetic_dataset: Dataset, tmp_path: Path, browser: Browser
) -> None:
    out, results, evidence = finished
    shutil.copy(out / "predictions.parquet", tmp_path / "predictions.parquet")
    write_report(Folder(tmp_path), external(whole(results, evidence)), synthetic_dataset)
    shown = opened(browser, tmp_path / "report.html", PHONE)
    assert "of elsewhere, without any training there; it had been trained on synthetic" in shown.texts(".lead")[0]
    assert any(" here, " in told and "on the test patients of synthetic." in told for told in shown.texts("#part-1 p"))
    titles = shown.texts("h2")
    assert "All figures" in titles and "Cases unlike the training data" in titles and "Compared with" not in titles
    assert shown.overflow_px() == 0 and "undefined" in shown.page.content()
    assert "finetune evaluate RESULTS" in shown.texts("pre.command")[0]
    assert all(word in shown.texts("pre.command")[0] for word in ("label_map=", "'splits=[val, test]'", "seed=3"))
    shown.page.close()


def test_where_nobody_says_who_is_who_no_patient_is_claimed(
    finished: Made, synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    """HAM10000 tells lesions and no patients, so its page must not speak of tested patients."""
    out, results, evidence = finished
    shutil.copy(out / "predictions.parquet", tmp_path / "predictions.parquet")
    told = whole(results, evidence)
    told |= {"dataset": {**told["dataset"], "patient_unit": "lesion"}, "warnings": []}
    next(iter(first_model(told)["test"]["per_class"].values()))["patients"] = 7
    swept = {**EFFICIENCY, "dataset": {"name": "x", "patient_unit": "lesion"}}
    write_report(Folder(tmp_path), told, synthetic_dataset, Beside(efficiency=swept))
    page = re.sub(r"<[^>]+>", "", (tmp_path / "report.html").read_text())
    number = told["cohort"]["test"]["patients"]
    assert f"It was tested on {number} lesions" in page
    assert (
        "(each lesion taken for a patient, since none are known) that were in neither training nor validation" in page
    )
    assert "Splits are by lesion, which stands for the patient everywhere here" in page
    assert "resamples of whole lesions" in page
    for words in ("Fewer than 10 test lesions have", "with other lesions like these", "on the evaluated lesions"):
        assert words in page
    for words in ("between the same lesions", "in brackets the number of lesions", "share of labelled lesions"):
        assert words in page
    assert f"{number} patients" not in page
    assert not re.search(r"(test|these|such|same|evaluated|labelled|other|whole) patients", page)


def test_few_patients_are_marked_by_the_smaller_side(finished: Made) -> None:
    """A sensitivity rests on who has it, a specificity on who has not."""
    out, results, evidence = finished
    told = whole(results, evidence)
    per_class = first_model(told)["test"]["per_class"]
    columns = pq.read_table(out / "predictions.parquet").to_pandas()
    patients = np.array([dict(zip(columns.key, columns.patient))[key] for key in evidence.key_N])
    for k, (label, row) in enumerate(per_class.items()):
        sides = [len(set(patients[evidence.truth_NK[:, k] == side])) for side in (1, 0)]
        assert [row["patients"], row["patients_without"]] == sides, label
    labels = list(per_class)
    for label, sides in zip(labels, [(40, 3), (7, 60), (8, 2), (40, 40), (12, 0)]):
        per_class[label] |= dict(zip(("patients", "patients_without"), sides))
    words = re.sub(r"<[^>]+>", " ", str(by_class(told, None)[0]))
    shown_as = ("40 (few: 3 without)", "7 (few)", "8 (few: 2 without)", "40", "12 (few: 0 without)")
    for label, marked in zip(labels, shown_as):
        assert re.search(rf" {label}  +{per_class[label]['positives']}  +{re.escape(marked)}  ", words), marked
    assert "Few: fewer than 10 patients on one side, with it or without it." in words
    assert (
        f"Fewer than 10 test patients have {labels[1]} and {labels[2]}, and fewer than 10 test patients are without "
        f"{labels[0]} and {labels[2]}: intervals that rest on them are wide" in str(headline(told))
    )
    for row in per_class.values():
        row["patients"] = 40
        del row["patients_without"]  # results of earlier versions
    assert "ewer than 10" not in str(headline(told)) and "Few:" not in str(by_class(told, None)[0])


def test_figures_elsewhere_stand_beside_those_over_the_same_labels(finished: Made) -> None:
    """The mean over all labels, one of which the other dataset lacks, may be above that where it is below."""
    _, results, evidence = finished
    told = external(whole(results, evidence))
    model, there = first_model(told), told["trained_on_per_class"]
    lacking, *others = told["labels"]
    for label, value in zip(told["labels"], (0.2, 0.9, 0.9, 0.9, 0.9)):
        there[label] = {"auroc": value, "sensitivity": value, "specificity": 0.5}
    model["test"]["per_class"][lacking] |= {"auroc": figure(None), "sensitivity": figure(None)}
    model["test"] |= {"auroc": figure(0.8), "balanced_accuracy": figure(0.7)}
    words = str(headline(told))
    assert where_trained("auroc", told) == where_trained("balanced_accuracy", told) == pytest.approx(0.9)
    over = f"(both over what is known here: {listed(others)})"
    assert f"Macro AUROC 0.800 here, 0.900 on the test patients of synthetic {over}." in words
    assert f"Balanced accuracy 0.700 here, 0.900 on the test patients of synthetic {over}." in words
    there[others[0]]["auroc"] = None  # undefined where it was trained
    assert where_trained("auroc", told) is None
    assert "Macro AUROC 0.800 here" not in str(headline(told))
    del told["trained_on_per_class"]  # results of before
    assert " here, " not in str(headline(told))


def test_differences_are_told_with_what_would_be_found_and_where_there_is_none(finished: Made) -> None:
    _, results, evidence = finished
    told = whole(results, evidence)
    found = told["comparisons"][0] | {"p_holm": 0.3, "detectable": 0.05, "value": 0.01, "low": -0.02, "high": 0.04}
    alike = {**found, "value": 0.0, "low": None, "high": None, "p": 1.0, "p_holm": 1.0, "detectable": None}
    told["comparisons"] = [found, alike]
    words = str(headline(told))
    assert "the smallest difference found four times in five before the correction is 0.050." in words
    assert "the two never differ on these patients, which gives no interval." in words
    table, _ = comparison(told)
    assert "+0.000 (no interval)" in str(table) and "p = 1.000" in str(table)
    assert "found four times in five with as many such patients, before Holm&#x27;s correction." in str(table)


def test_the_accuracy_of_a_yes_or_no_label_is_that_at_its_threshold(finished: Made) -> None:
    _, results, evidence = finished
    told = whole(results, evidence)
    classes = (str(headline(told)), str(comparison(told)[0]))
    assert all("Top-1 accuracy" in words for words in classes) and "likeliest class is the true one" in classes[0]
    labels = results["labels"][:1]
    told |= {"task": "binary", "labels": labels, "classes": ["not it", *labels]}
    told["comparisons"].append({**told["comparisons"][0], "figure": "top1", "label": None})
    page, drawings = comparison(told)
    words = str(headline(told)) + str(page)
    assert [words[m.start() - 80 : m.end() + 40] for m in re.finditer("op-1|likeliest class", words)] == []
    assert "Accuracy: share decided rightly at the threshold chosen on validation." in words
    assert next(drawing for drawing in drawings if drawing.name == "models-top1").title == "Accuracy"


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_that_are_yes_or_no_have_misses_and_false_alarms(
    task: str,
    finished: Made,
    synthetic_dataset: Dataset,
    tmp_path: Path,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, results, evidence = finished
    labels = results["labels"][: 1 if task == "binary" else 3]
    told = whole(results, evidence)
    model = told["models"]["pretrained"]
    model["thresholds"] = dict.fromkeys(labels, 0.2)
    model["test"]["per_class"] = {label: model["test"]["per_class"][label] for label in labels}
    model["test"]["confusion"] = None
    told |= {"task": task, "labels": labels, "classes": [], "models": {"pretrained": model}, "comparisons": []}
    shutil.copy(out / "predictions.parquet", tmp_path / "predictions.parquet")
    vit = Looking("test_vit", len(labels), img_size=SIZE_PX)
    write_report(Folder(tmp_path), told, synthetic_dataset, Beside(vit, SIZE_PX))
    words = " ".join(Outline((tmp_path / "report.html").read_text()).words)
    frame = pq.read_table(out / "predictions.parquet").to_pandas()
    frame = frame[(frame.model == "pretrained") & (frame.split == "test")]
    for label in labels:
        cases = frame.groupby("key")[[f"label.{label}", f"probability.{label}"]].mean().to_numpy()
        missed, alarms = (cases[:, 0] == 1) & (cases[:, 1] < 0.2), (cases[:, 0] == 0) & (cases[:, 1] >= 0.2)
        assert f"{label}: {missed.sum()} of {int(cases[:, 0].sum())} case" in words
        assert f"{label}: {alarms.sum()} false alarms in {int((cases[:, 0] == 0).sum())} case" in words
    assert "Attention rollout" in words and "whatever the class" in words and "Youden" in words
    shown = opened(browser, tmp_path / "report.html", PHONE)
    assert shown.overflow_px() == 0 and shown.complaints == [] and shown.left_the_page() == []
    assert shown.page.evaluate(WIDEST) <= PHONE
    shown.page.close()
    write_report(Folder(tmp_path), told, synthetic_dataset, Beside(Looking("test_resnet", len(labels)), SIZE_PX))
    words = " ".join(Outline((tmp_path / "report.html").read_text()).words)
    assert "Grad-CAM" in words and "speaks for the label named below it, whatever was decided" in words
    assert "the class that was decided" not in words
    if task == "multilabel":  # too many to show all
        monkeypatch.setattr(pictures, "MAX_LOOKED_AT", 2)
        write_report(Folder(tmp_path), told, synthetic_dataset, Beside(Looking("test_resnet", len(labels)), SIZE_PX))
        words = " ".join(Outline((tmp_path / "report.html").read_text()).words)
        assert re.search(r"Of [12] of the 3 classes a case decided rightly and the surest mistake\.", words)
        assert ", mistaken" in words


def test_places_of_baselines_are_told_by_a_word_whatever_they_look_like() -> None:
    models = [{"title": f"network {n}", "fingerprint": str(n)} for n in range(4)]
    given = ["imagenet:s3://bucket/w.safetensors", "s3://bucket/encoder", "vgg16:/a/b.safetensors", "/a:b/encoder"]
    named, places = _baselines([*given, "untrained"], models)
    assert named == ["imagenet:BASELINE_1", "BASELINE_2", "vgg16:BASELINE_3", "BASELINE_4", "untrained"]
    assert places["BASELINE_2"] == "network 1, fingerprint 1"


def test_a_map_covers_only_what_it_is_bright_on() -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    fields = np.zeros((4, 4), np.float32)
    assert np.array_equal(overlaid(pixels, fields), pixels)
    fields[3, 0] = 1
    found = overlaid(pixels, fields).astype(int)
    assert np.array_equal(found[:20], pixels[:20])
    row, column = np.unravel_index(np.abs(found - 200).sum(axis=2).argmax(), (40, 40))
    assert row >= 30 and column < 10


def test_the_page_is_made_again_by_a_command(
    finished: Made, synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results, evidence = finished
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    (folder / "report.html").unlink()
    assert COMMANDS["report"] == make_page.__module__
    make_page([str(folder), f"data={synthetic_dataset.location}"])
    assert "report.html" in capsys.readouterr().out
    assert "Errors worth looking at" in (folder / "report.html").read_text()
    with pytest.raises(InputError, match=r"no results.json here; finish the run"):
        make_page([str(tmp_path)])
    other = external(whole(results, evidence))
    (tmp_path / "on/elsewhere-1").mkdir(parents=True)
    (tmp_path / "sweep").mkdir()
    model = json.loads((folder / "model/model.json").read_text())["fingerprint"]
    told = json.loads((folder / "results.json").read_text())
    first = next(iter(told["models"].values()))["fingerprint"]
    recipe_of_sweep = {**told["identity"]["recipe"], "seed": 5, "label_fraction": 1.0}
    same = {"dataset": told["dataset"]["fingerprint"], "models": {"pretrained": first}, "recipe": recipe_of_sweep}
    sweep = {**EFFICIENCY, "identity": same}

    def made(model: str, **identity: Any) -> str:
        of = {**other, "identity": {**other["identity"], "model": model}}
        (tmp_path / "on/elsewhere-1/results.json").write_text(json.dumps(sealed(of)))
        (tmp_path / "sweep/efficiency.json").write_text(
            json.dumps({**sweep, "identity": {**sweep["identity"], **identity}})
        )
        make_page([str(folder), f"external={tmp_path / 'on'}", f"efficiency={tmp_path / 'sweep'}"])
        return (folder / "report.html").read_text()

    labels = listed(told["labels"])
    page = made(model)
    assert (
        "Other hospitals" in page
        and "AUROC known of" not in page
        and f"Learned with fewer labels: {labels}, with head=linear.</p>" in page
    )
    next(iter(other["models"].values()))["test"]["per_class"][told["labels"][0]]["auroc"]["value"] = None
    page = made(model)
    assert "AUROC known of" in page and "compare rows with the same ones alone" in page
    page = html.unescape(made(model, recipe={**recipe_of_sweep, "class_weighting": "none"}))
    assert "The sweep has other settings than this model: class_weighting: balanced -> none." in page
    for key, theirs, ours in (
        ("label", "nevus", None), ("labels", ["nevus"], None), ("label_map", {"a": "nevus"}, {}),
        ("numbers", ["age"], []), ("uncertain", "ones", "ignore"), ("head", "full", "linear"),
    ):  # fmt: skip
        told_of = re.escape(f"of another study, with {key}={theirs} where these results have {key}={ours}; give")
        with pytest.raises(InputError, match=f"sweep is a sweep {told_of} a sweep of the same"):
            made(model, recipe={**recipe_of_sweep, key: theirs})
    broken = json.loads((tmp_path / "sweep/efficiency.json").read_text())
    (tmp_path / "sweep/efficiency.json").write_text(json.dumps(sealed(broken) | {"draws": 7}))
    with pytest.raises(InputError, match=r"efficiency\.json was altered"):
        make_page([str(folder), f"efficiency={tmp_path / 'sweep'}"])
    with pytest.raises(
        InputError, match=r"external: .*elsewhere-1 is no evaluation of the model of this results folder"
    ):
        made("0" * 64)
    with pytest.raises(InputError, match=r"external: .* is no evaluation of the model"):
        make_page([str(folder), f"external=[{folder}]"])
    with pytest.raises(InputError, match="sweep is a sweep on another dataset; give one on"):
        made(model, dataset="0" * 64)
    with pytest.raises(InputError, match="sweep has no curve of"):
        made(model, models={"pretrained": "0" * 64})
    other["dataset"]["fingerprint"] = "0" * 64
    (folder / "results.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"results\.json was altered \(its own hash differs\); run the command"):
        make_page([str(folder)])
    (folder / "results.json").write_text(json.dumps(sealed(other)))
    with pytest.raises(InputError, match=r"data: .* is not the dataset of .* give that one"):
        make_page([str(folder), f"data={synthetic_dataset.location}"])


def test_a_model_that_cannot_be_seen_into_costs_no_page(
    finished: Made, synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results, _ = finished
    shutil.copy(out / "predictions.parquet", tmp_path / "predictions.parquet")
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE_PX**2, 5))
    broken = Looking("test_resnet", 5)
    broken.head = nn.Linear(7, 5)
    for model, told in ((blind, ""), (broken, "no maps of where the model looked")):
        write_report(Folder(tmp_path), results, synthetic_dataset, Beside(model, SIZE_PX))
        assert "neither maps nor attention that can be shown" in (tmp_path / "report.html").read_text()
        assert told in capsys.readouterr().out


def card_of(results: dict[str, Any], model: dict[str, Any] | None = None) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", str(model_card(results, model))))


def test_the_card_says_what_is_known_and_no_more(finished: Made) -> None:
    _, results, evidence = finished
    told = whole(results, evidence)
    first = first_model(told)
    first["test"]["ece"] = {"value": 0.058, "low": None, "high": None, "by_chance": 0.031}
    words = card_of(told)
    assert "0.058, by chance alone 0.031" in words and "no interval" not in words
    assert "0.610 (0.570 to 0.650), 95 % interval" in words
    assert "by id and exact pixels, encoders that saw those of test are refused" in words
    assert "seed" not in words, "a linear head does not depend on it"
    by_chance: list[dict[str, Any]] = [{"label_fraction": 0.1}, {"uncertain": {"nevus": "smooth"}}]
    by_chance += [
        {"linear": {"sgd": {"lr": 0.1}}},
        {"linear": {"pooling": "max"}},
        {"linear": {"pooling": "attention"}},
    ]
    for changed in by_chance:
        recipe_of = {**told["identity"]["recipe"], **changed}
        words = card_of({**told, "identity": {**told["identity"], "recipe": recipe_of}})
        assert "the intervals do not hold what another seed of the training would change." in words
    few = {**told["cohort"], "train": {**told["cohort"]["train"], "patients": 12, "of_patients": 480}}
    assert "to train on 12 of 480 patients (2.5 %);" in card_of({**told, "cohort": few}), "whatever was asked for"
    first["head"] = "full"
    assert "another seed of the training would change" in card_of(told)
    told["warnings"] = ["LEAKAGE: encoder 0123 was pretrained on 3 test patients and 4 test images; the figures …"]
    words = card_of(told)
    assert "by id and exact pixels, what was used here saw some of test, see Result" in words
    assert "are refused" not in words and "Found:" not in words
    told["warnings"] = [f"{COPIES}there stand, pixel for pixel the same, 43 of 210 test images in training"]
    words = card_of(told)
    assert "Found: there stand, pixel for pixel the same, 43 of 210 test images in training." in words
    assert "are refused" in words, "of encoders nothing was found"


def test_the_card_of_an_evaluation_names_the_model_and_not_its_encoder(finished: Made) -> None:
    _, results, evidence = finished
    told = external(whole(results, evidence))
    encoder = first_model(told)["fingerprint"]
    assert "f" * 64 in card_of(told) and encoder not in card_of(told)


def test_datasets_of_one_name_are_told_apart(finished: Made, tmp_path: Path) -> None:
    _, results, evidence = finished
    told = whole(results, evidence)
    there = external(told)
    there["dataset"] |= {"name": told["dataset"]["name"], "fingerprint": "0123456789" * 6}
    there["trained_on"] = told["dataset"]
    name, ours = told["dataset"]["name"], told["dataset"]["fingerprint"][:8]
    before = copy.deepcopy(told)
    write_report(Folder(tmp_path / "own"), told, None, Beside(external=[there]))
    write_report(Folder(tmp_path / "there"), there, None)
    pages = [(tmp_path / folder / "report.html").read_text() for folder in ("own", "there")]
    assert all(f"{name} (01234567)" in page and f"{name} ({ours})" in page for page in pages)
    assert told == before
    write_report(Folder(tmp_path / "own"), told, None, Beside(external=[external(told)]))
    assert f"{name} (" not in (tmp_path / "own/report.html").read_text()


def test_what_is_above_the_line_is_more_common_than_said(finished: Made) -> None:
    _, results, evidence = finished
    words = str(calibration(whole(results, evidence))[0])
    assert "Above the line it is more common than said, below it rarer." in words
    assert "Each point holds as equal a share of the cases as ties allow" in words


def test_a_command_is_told_in_the_script_of_its_names(finished: Made) -> None:
    _, results, _ = finished
    told = {**results["identity"]["recipe"], "numbers": ["Größe (mm)", "年齢"]}
    words = command({**results, "identity": {**results["identity"], "recipe": told}}, None)[0]
    assert "numbers=[Größe (mm), 年齢]" in words
    assert load_config(FinetuneConfig, words[3:]).numbers == told["numbers"]
