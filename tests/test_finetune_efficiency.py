"""Label-efficiency sweeps of a tiny encoder: what they hold, what is reused, and what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from clusters.config import InputError, load_config
from data.dataset import Dataset
from finetune.cohort import choose_cohort
from finetune.efficiency import EfficiencyConfig, draw_cohorts, efficiency
from finetune.labels_saved import labels_saved, matching_fraction, percent, sentence, told, untested
from finetune.report.groups import label_efficiency
from finetune.run import finetune
from tests import miniatures
from tests.finetune_runs import NAME, recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.test_data_page import Outline


@pytest.fixture(scope="module")
def swept(synthetic_dataset, tmp_path_factory) -> EfficiencyConfig:
    """A finished sweep of two encoders, two shares and two draws."""
    folder = tmp_path_factory.mktemp("efficiency")
    encoder = write_encoder(folder / "pretrained", synthetic_dataset)
    plain = recipe(synthetic_dataset, encoder, folder / "out", head="linear").model_dump(exclude={"baselines"})
    sweep = {"encoders": [encoder, "untrained"], "fractions": [0.2, 0.5], "draws": 2}
    config = EfficiencyConfig.model_validate({**plain, **sweep})
    efficiency(config)
    return config


def results_of(config: EfficiencyConfig) -> dict:
    return json.loads((Path(config.out) / "efficiency.json").read_text())


def test_every_encoder_share_and_draw_has_a_model_that_saw_test_once(swept):
    results = results_of(swept)
    assert list(results["curves"]) == ["pretrained", "untrained"] and results["baseline"] == "untrained"
    for curve in results["curves"].values():
        assert [(p["fraction"], len(p["draws"])) for p in curve["points"]] == [(0.2, 2), (0.5, 2), (1.0, 1)]
        for point in curve["points"]:
            test = [model["test"] for model in point["draws"]]
            assert point["low"] == min(test) <= point["mean"] <= max(test) == point["high"]
    assert results["test_evaluations"] == 2 * (2 + 2 + 1)
    patients = [[counts["patients"] for counts in row["draws"]] for row in results["training"]]
    assert patients[0] < patients[1] < patients[2]


def test_with_all_labels_the_figure_is_that_of_the_plain_command(swept, tmp_path):
    plain = swept.plain(out=str(tmp_path / "plain"))
    finetune(plain)
    models = json.loads((tmp_path / "plain" / "results.json").read_text())["models"]
    for name, curve in results_of(swept)["curves"].items():
        (whole,) = curve["points"][-1]["draws"]
        assert whole["test"] == pytest.approx(models[name]["test"]["auroc"]["value"], abs=1e-6)
        assert whole["C"] == models[name]["chosen"]["C"]


def test_a_draw_is_the_subset_that_its_seed_draws_and_shares_are_nested(swept, synthetic_dataset):
    counts = results_of(swept)["training"][0]["draws"]
    rows = []
    for draw in (0, 1):
        few, more = (
            choose_cohort(synthetic_dataset, swept.plain(label_fraction=share, seed=swept.seed + draw))
            for share in (0.2, 0.5)
        )
        assert set(few.train) < set(more.train)
        assert {**few.counts()["train"], "share": counts[draw]["share"]} == counts[draw]
        rows.append(set(few.train))
    assert rows[0] != rows[1]


def test_files_for_people_hold_the_numbers(swept):
    out, results = Path(swept.out), results_of(swept)
    rows = list(csv.DictReader((out / "efficiency.csv").open()))
    assert len(rows) == 10
    first = results["curves"]["pretrained"]["points"][0]
    assert [float(row["test"]) for row in rows[:2]] == [model["test"] for model in first["draws"]]
    outline = Outline((out / "efficiency.html").read_text())
    words, saved = " ".join(outline.words), results["labels_saved"]["pretrained"]
    assert f"{first['mean']:.3f} ({first['low']:.3f} to {first['high']:.3f})" in words
    assert sentence("test_resnet, simclr", "test_resnet, untrained", "macro AUROC", saved) in words
    assert untested("patients") in words
    assert (out / "efficiency.svg").read_text().count("<path") > 5
    assert (out / "efficiency.png").read_bytes()[:4] == b"\x89PNG"


def test_shares_are_those_learned_from_where_a_patient_of_each_class_is_more_than_asked_for(swept, tmp_path, capsys):
    config = swept.model_copy(update={"out": str(tmp_path), "fractions": [0.001, 0.002, 0.5]})
    efficiency(config)
    results, printed = results_of(config), capsys.readouterr().out
    whole = results["training"][-1]["draws"][0]["patients"]
    shares = [draw["patients"] / whole for draw in results["training"][0]["draws"]]
    share = sum(shares) / 2
    assert share > 0.02
    for curve in results["curves"].values():
        assert [draw["share"] for draw in curve["points"][0]["draws"]] == shares
        assert [point["share"] for point in curve["points"][:2]] == [pytest.approx(share)] * 2
    for saved in results["labels_saved"].values():
        assert all(found is None or found >= min(shares) for found in (saved["fraction"], *saved["by_draw"]))
    rows = list(csv.DictReader((tmp_path / "efficiency.csv").open()))
    assert [float(row["share"]) for row in rows] == [int(row["training_patients"]) / whole for row in rows]
    in_words = f"{percent(share)} (asked for: 0.1 %)"
    words = " ".join(Outline((tmp_path / "efficiency.html").read_text()).words)
    html, (drawing,) = label_efficiency(results)
    for place in (printed, words, str(html)):
        assert in_words in place and "Whole patients are drawn, at least one of each class" in place
    svg = (tmp_path / "efficiency.svg").read_text()
    assert percent(share) in svg and "0.1 %" not in svg
    assert drawing.rows[0][1] == pytest.approx(share)


def test_a_sweep_goes_on_where_it_was_and_takes_more_shares(swept, capsys):
    out = Path(swept.out)
    before = results_of(swept)
    efficiency(swept)
    assert "10 of 10 models are there already" in capsys.readouterr().out
    assert results_of(swept)["test_evaluations"] == before["test_evaluations"]
    (out / "points" / "untrained-0.2-1.json").unlink()  # as if the first run had been killed there
    more = swept.model_copy(update={"fractions": [0.2, 0.5, 0.35]})
    efficiency(more)
    after = results_of(more)
    assert after["test_evaluations"] == before["test_evaluations"] + 1 + 2 * 2
    assert after["curves"]["untrained"]["points"][0] == before["curves"]["untrained"]["points"][0]
    with pytest.raises(InputError, match=r"made with another config .*recipe.seed: 0 -> 3"):
        efficiency(swept.model_copy(update={"seed": 3}))


def test_no_share_leaves_a_class_empty(swept, synthetic_dataset):
    """Its three patients all have a rarer class too, of which others may be drawn."""
    patients = synthetic_dataset.column("patient").astype(str)
    training = synthetic_dataset.rows(["train"])
    names, counts = np.unique(patients[training], return_counts=True)
    several = names[counts > 1]

    class Relabelled(Dataset):
        @property
        def labels(self):  # type: ignore[override]
            classes = np.zeros(synthetic_dataset.num_images, dtype=int)
            for rare in (2, 3, 4):
                first, second = (np.flatnonzero(patients == several[2 * rare + k]) for k in (0, 1))
                classes[first[0]], classes[first[1:]], classes[second] = 1, rare, rare
            classes[synthetic_dataset.rows(["val", "test"])[::2]] = 2
            return np.eye(len(synthetic_dataset.label_names))[classes]

    dataset = Relabelled(synthetic_dataset.location, synthetic_dataset.manifest)
    cohorts = draw_cohorts(dataset, swept.model_copy(update={"fractions": [0.1], "draws": 60}))
    assert len(cohorts) == 61
    assert all(set(cohort.class_of(cohort.train)) == {0, 1, 2, 3, 4} for cohort in cohorts.values())


def test_a_folder_of_the_plain_command_is_left_alone(swept, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds the results of another command"):
        efficiency(swept.model_copy(update={"out": str(tmp_path)}))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("label_fraction=0.5", "label_fraction must be left at 1"),
        ("label_seed=1", "label_seed must be left out: each draw has its own"),
        ("baseline=/other", "baseline '/other' is none of encoders: /a, untrained"),
        ("fractions=[0.1,1.5]", "'fractions.1' in the command line: Input should be less than or equal to 1"),
        ("fractions=[]", "'fractions' in the command line: List should have at least 1 item"),
        ("encoders=[]", "'encoders' in the command line: List should have at least 1 item"),
    ],
)
def test_bad_settings_are_told(word, told):
    with pytest.raises(InputError) as error:
        load_config(EfficiencyConfig, ["data=/d", "out=/o", "encoders=[/a,untrained]", word])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("pca", "^encoders: 'pca' is no encoder"),
        ("pca:/x", "^encoders: 'pca:/x' is no folder here, and 'pca' takes nothing after it"),
        ("/nowhere", "^/nowhere"),
        ("imagenet", "^encoders: imagenet: which weights"),
        ("imagnet:w", r"^encoders: 'imagnet' \(nearest: imagenet\) is neither"),
        ("imagenet:/nowhere.safetensors", "^encoders: imagenet: /nowhere.safetensors: no such file"),
    ],
)
def test_what_is_no_encoder_is_told(swept, word, told):
    with pytest.raises(InputError, match=told):
        efficiency(swept.model_copy(update={"encoders": [swept.encoder, word], "baseline": None}))


@pytest.mark.parametrize("word", ["untrained", "imagenet:w.safetensors", "vgg16"])
def test_the_first_is_an_encoder_of_ours(swept, word):
    config = load_config(EfficiencyConfig, ["data=/d", "out=/o", f"encoders=[{word},/a]"])
    with pytest.raises(InputError, match=f"^encoders: '{word}' cannot be the first, .*; name a run or an encoder fold"):
        efficiency(config)


def test_labels_saved_against_weights_of_others(swept, tmp_path, monkeypatch):
    """Given by a relative path, as the plain command takes it, with what nobody knows of them told."""
    torch.manual_seed(5)
    safetensors.torch.save_file(timm.create_model(NAME).state_dict(), tmp_path / "theirs.safetensors")
    monkeypatch.chdir(tmp_path)
    words = [swept.encoder, "imagenet:theirs.safetensors"]
    config = swept.model_copy(
        update={"out": str(tmp_path / "out"), "encoders": words, "baseline": words[1], "fractions": [0.5], "draws": 1}
    )
    efficiency(config)
    results = results_of(config)
    assert list(results["curves"]) == ["pretrained", "imagenet"] and results["baseline"] == "imagenet"
    assert results["curves"]["imagenet"]["title"] == f"{NAME}, theirs.safetensors"
    target = results["curves"]["imagenet"]["points"][-1]["mean"]
    assert results["labels_saved"]["pretrained"]["target"] == target
    told = f"{NAME}, theirs.safetensors: weights of others, of which nobody knows whether they were trained on test"
    assert any(warning.startswith(told) for warning in results["warnings"])
    assert told in (tmp_path / "out/efficiency.html").read_text()
    plain = swept.plain(out=str(tmp_path / "plain"), baselines=words[1:])
    finetune(plain)
    model = json.loads((tmp_path / "plain/results.json").read_text())["models"]["imagenet"]
    assert target == pytest.approx(model["test"]["auroc"]["value"], abs=1e-6)


def test_whole_trainings_are_runs_of_the_plain_command(swept, synthetic_dataset, tmp_path):
    full = swept.full.model_copy(update={"epochs": 1, "batch_size": 8})
    changed = {"head": "full", "full": full, "out": str(tmp_path), "encoders": [swept.encoder]}
    config = swept.model_copy(update={**changed, "fractions": [0.5], "draws": 1, "baseline": None})
    efficiency(config)
    results = results_of(config)
    for point in results["curves"]["pretrained"]["points"]:
        run = json.loads((tmp_path / "runs" / f"{point['fraction']:g}-0" / "results.json").read_text())
        assert point["mean"] == run["models"]["pretrained"]["test"]["auroc"]["value"]
        assert run["identity"]["recipe"]["label_fraction"] == point["fraction"]
    assert results["test_evaluations"] == 2


def test_whole_trainings_with_a_number_are_called_what_is_measured_of_them(swept, tmp_path):
    """AUROC of the label; their score on validation is the mean of that and of R²."""
    dataset = imported("table", miniatures.echo_table(tmp_path / "raw"), tmp_path / "dataset", *ECHO)
    full = swept.full.model_copy(update={"epochs": 1, "batch_size": 8})
    changed = {
        "head": "full", "full": full, "data": dataset.location, "out": str(tmp_path / "out"), "fractions": [1.0],
        "encoders": [write_encoder(tmp_path / "encoder", dataset)], "draws": 1, "baseline": None, "on_leak": "warn",
        "label": "reduced_ef", "numbers": ["EF"],
    }  # fmt: skip
    config = EfficiencyConfig.model_validate({**swept.model_dump(exclude={"encoder"}), **changed})
    efficiency(config)
    results = results_of(config)
    run = json.loads((tmp_path / "out/runs/1-0/results.json").read_text())["models"]["pretrained"]["test"]
    assert results["curves"]["pretrained"]["points"][-1]["mean"] == run["auroc"]["value"]
    assert results["figure"] == "AUROC"
    assert "at least one, with high and low values of each number;" in (tmp_path / "out/efficiency.html").read_text()


def test_a_test_split_that_says_nothing_is_refused_before_anything_is_computed(swept, tmp_path, monkeypatch):
    """A label without a positive case in test has no figure, and so no curve."""

    def without_positives(dataset, config):
        cohorts = draw_cohorts(dataset, config)
        return {key: replace(one, test=one.test[one.truth[one.test, 0] == 0]) for key, one in cohorts.items()}

    monkeypatch.setattr("finetune.efficiency.draw_cohorts", without_positives)
    config = swept.model_copy(update={"label": "melanoma", "out": str(tmp_path / "out")})
    with pytest.raises(InputError, match="no figure of melanoma on its test cases, which lack one side of each label"):
        efficiency(config)
    assert not (tmp_path / "out").exists()


def test_a_share_that_is_too_small_for_whole_trainings_is_refused_before_anything_is_computed(swept, tmp_path):
    full = swept.full.model_copy(update={"epochs": 1, "batch_size": 64})
    config = swept.model_copy(update={"head": "full", "full": full, "out": str(tmp_path / "out")})
    with pytest.raises(
        InputError, match=r"full.batch_size: 64 is more than the \d+ training images .*label_fraction=0.2"
    ):
        efficiency(config)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_saw_test_patients_is_refused(swept, synthetic_dataset, tmp_path):
    leaky = write_encoder(tmp_path / "leaky", synthetic_dataset, ["train", "test"])
    with pytest.raises(InputError, match="so its test figures would mean nothing"):
        efficiency(swept.model_copy(update={"encoders": [leaky, "untrained"], "out": str(tmp_path / "out")}))
    assert not (tmp_path / "out").exists()


def test_a_figure_that_is_undefined_reaches_nothing():
    assert matching_fraction([0.1, 1.0], [0.6, 0.7], float("nan")) is None
    assert matching_fraction([0.1, 1.0], [0.6, float("nan")], 0.5) is None


def test_the_matching_share_lies_on_the_line_over_the_logarithm():
    shares = [0.01, 0.1, 1.0]
    assert matching_fraction(shares, [0.6, 0.8, 0.9], 0.7) == pytest.approx(10**-1.5)
    assert matching_fraction(shares, [0.6, 0.8, 0.9], 0.8) == pytest.approx(0.1)
    assert matching_fraction(shares, [0.75, 0.8, 0.9], 0.7) == 0.01
    assert matching_fraction(shares, [0.6, 0.8, 0.9], 0.95) is None
    assert matching_fraction(shares, [0.8, 0.6, 0.9], 0.75) == pytest.approx(10**-0.5)  # a curve that falls back below


def test_labels_saved_are_those_of_the_mean_and_of_each_draw():
    def curve(*draws: list[float]) -> dict:
        points = [
            {"fraction": share, "mean": float(np.mean(values)), "draws": [{"test": value} for value in values]}
            for share, values in zip([0.01, 0.1, 1.0], draws)
        ]
        return {"points": points}

    curves = {"base": curve([0.5, 0.5], [0.6, 0.6], [0.8]), "better": curve([0.7, 0.6], [0.9, 0.6], [0.9])}
    saved = labels_saved(curves, "base")["better"]
    assert saved["target"] == 0.8
    assert saved["by_draw"] == [pytest.approx(10**-1.5), pytest.approx(10 ** (-1 / 3))]
    assert saved["fraction"] == pytest.approx(10 ** (-1 + 0.05 / 0.15))
    assert told(saved) == "22 % of the labels (draws: 3.2 % to 46 %)"
    for point, shares in zip(curves["better"]["points"], ([0.01, 0.03], [0.1, 0.3], [1.0])):
        point["share"] = float(np.mean(shares))
        for draw, share in zip(point["draws"], shares):
            draw["share"] = share
    saved = labels_saved(curves, "base")["better"]  # the same curves over the shares that were learned from
    assert saved["by_draw"] == [pytest.approx(10**-1.5), pytest.approx(0.3 ** (1 / 3))]
    assert saved["fraction"] == pytest.approx(0.2 ** (2 / 3))
    assert (percent(0.997, 2), percent(0.01055), percent(1.0)) == ("100 %", "1.05 %", "100 %")
    curves["worse"] = curve([0.5, 0.5], [0.5, 0.5], [0.7])
    worse = labels_saved(curves, "base")["worse"]
    assert told(worse) == "not reached"
    assert sentence("A", "B", "AUROC", worse) == "A does not reach the figure of B with all labels (AUROC 0.800)."
    told_of_it = sentence("A", "B", "AUROC", {**saved, "by_draw": []})
    assert told_of_it == "A reaches the figure of B with all labels (AUROC 0.800) at 34 % of the labels."
