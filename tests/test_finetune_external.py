"""A fine-tuned model on other datasets: figures, frozen thresholds, leaks refused, foreign images found."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from clusters.config import InputError, load_config
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from finetune import foreign
from finetune.external import EvaluateConfig, run
from finetune.report.reproduce import command
from finetune.run import finetune
from tests import drawn_cases, miniatures
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported

RESAMPLES = "bootstrap.resamples=50"


@pytest.fixture(scope="module")
def trained(synthetic_dataset, tmp_path_factory) -> str:
    """A finished linear run; its results folder."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = write_encoder(folder / "encoder", synthetic_dataset)
    config = recipe(synthetic_dataset, encoder, folder / "out", head="linear", full={})
    finetune(config)
    return config.out


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> str:
    """Another hospital: other synthetic patients, `naevus` called otherwise, and one class that is new."""
    out = tmp_path_factory.mktemp("elsewhere") / "dataset"
    options = synthetic.Options(
        source="synthetic", out=str(out), num_cases=50, size_px=48, num_processes=1, seed=7, name="elsewhere"
    )
    raw = read_raw(options)
    theirs = {label: f"their {label}" if number < 2 else label for number, label in enumerate(raw.label_names)}
    cases = [
        replace(case, patient=f"other-{case.patient}", labels={theirs[k]: v for k, v in case.labels.items()})
        for case in raw.cases
    ]
    write_dataset(replace(raw, cases=cases, label_names=tuple(theirs.values())), options)
    return str(out)


def results_in(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("*/results.json"))]


def test_another_hospital_s_dataset_is_evaluated_without_training(trained, elsewhere, tmp_path, capsys):
    ours = json.loads((Path(trained) / "results.json").read_text())
    first, second = ours["labels"][:2]
    words = [
        trained, f"data=[{elsewhere}]", f"out={tmp_path / 'out'}", RESAMPLES,
        f"label_map={{their {first}: {first}, their {second}: unseen}}",
    ]  # fmt: skip
    run(words)
    (results,) = results_in(tmp_path / "out")
    dataset = open_dataset(elsewhere)
    assert results["kind"] == "external"
    assert results["dataset"]["fingerprint"] == dataset.fingerprint
    assert results["trained_on"] == ours["dataset"]
    report = next((tmp_path / "out").glob("*/report.html")).read_text().replace("&#x27;", "'")
    assert "A case's answer: mean of the probabilities of a case's images. " in report
    model, before = results["models"]["pretrained"], ours["models"]["pretrained"]
    # They lack our second class, so that ours is the mean over the others.
    over = [label for label, row in model["test"]["per_class"].items() if row["auroc"]["value"] is not None]
    assert second not in over and len(over) == len(ours["labels"]) - 1
    there = np.mean([before["test"]["per_class"][label]["auroc"]["value"] for label in over])
    assert there != pytest.approx(before["test"]["auroc"]["value"], abs=1e-3)
    assert f"here, {there:.3f} on the test patients of synthetic (both over what is known here: " in report
    assert f"on its own test split {there:.3f} (over the same labels)" in capsys.readouterr().out
    assert model["temperature"] == before["temperature"]
    for label, row in model["test"]["per_class"].items():
        told = before["test"]["per_class"][label]["at_specificity"]
        assert (row["at_specificity"] or {}).get("threshold") == (told or {}).get("threshold")
    # The second class is unseen: nothing is said of it, and it is left out of the mean.
    assert model["test"]["per_class"][second]["positives"] == 0
    assert model["test"]["auroc_leaves_out"] == [second]

    frame = pq.read_table(next((tmp_path / "out").glob("*/predictions.parquet"))).to_pandas()
    known = frame[~frame.unseen_condition].drop(columns=["model", "split", "member", "patient"]).groupby("key").mean()
    expected = roc_auc_score(known[f"label.{first}"], known[f"probability.{first}"])
    assert model["test"]["per_class"][first]["auroc"]["value"] == pytest.approx(expected)
    assert results["cohort"]["external"]["cases"] == len(known)
    unseen = frame[frame.unseen_condition]
    assert unseen[f"label.{first}"].isna().all()
    counts = results["out_of_distribution_counts"]
    assert counts["unseen_cases"] == unseen["key"].nunique() > 0
    for name in ("energy", "knn", "mahalanobis"):
        row = results["out_of_distribution"][name]["unseen_condition"]
        scores = frame.groupby("key")[[f"foreign.{name}", "unseen_condition"]].mean()
        expected = roc_auc_score(scores["unseen_condition"], scores[f"foreign.{name}"])
        assert row["value"] == pytest.approx(expected)
        assert row["low"] <= row["value"] <= row["high"]
        assert 0 <= results["out_of_distribution"][name]["new_dataset"]["value"] <= 1
    assert set(model["test"]["subgroups"]) == {c.removeprefix("attr.") for c in dataset.column_names if "attr." in c}

    capsys.readouterr()
    run(words)
    assert "reused" in capsys.readouterr().out
    with pytest.raises(InputError, match="made with another config"):
        run([*words, "seed=3"])


def test_one_map_serves_two_hospitals_of_other_labels(trained, elsewhere, synthetic_dataset, tmp_path):
    """The synthetic dataset has its own names, so a map of the other's is none of its business."""
    first, second = json.loads((Path(trained) / "results.json").read_text())["labels"][:2]
    own = f"their {first}: {first}, their {second}: {second}"
    both = [trained, f"data=[{synthetic_dataset.location},{elsewhere}]", RESAMPLES, "foreign=false", "on_leak=warn"]
    run([*both, f"out={tmp_path / 'out'}", f"label_map={{{own}}}"])
    maps = [results["identity"]["label_map"] for results in results_in(tmp_path / "out")]
    assert sorted(f"their {first}" in told for told in maps) == [False, True]
    assert all(len(told) == 5 for told in maps)
    with pytest.raises(InputError, match="label_map: 'nobodys' is not known"):
        run([*both, f"out={tmp_path / 'none'}", f"label_map={{{own}, nobodys: unseen}}"])
    assert not (tmp_path / "none").exists()


def test_noise_is_foreign_to_a_model_of_lesions(trained, tmp_path):
    write_dataset(drawn_cases.cases(30), drawn_cases.config(tmp_path / "noise"))
    ours = json.loads((Path(trained) / "results.json").read_text())["labels"]
    label_map = f"label_map={{bcc: {ours[0]}, mel: {ours[1]}, nv: ignore}}"
    run([trained, f"data=[{tmp_path / 'noise'}]", f"out={tmp_path / 'out'}", label_map, RESAMPLES])
    (results,) = results_in(tmp_path / "out")
    figures = results["out_of_distribution"]
    assert figures["mahalanobis"]["new_dataset"]["value"] > 0.9
    assert figures["mahalanobis"]["unseen_condition"]["value"] is None
    (told,) = [warning for warning in results["warnings"] if "ids are of schemes" in warning]
    assert told.endswith("of images only exact copies are known again, none that was encoded again or cropped")
    assert not any("looked at" in warning for warning in results["warnings"])


def test_the_test_split_again_gives_the_figures_of_the_training_run(trained, synthetic_dataset, tmp_path):
    words = [trained, f"data=[{synthetic_dataset.location}]", f"out={tmp_path / 'out'}", RESAMPLES, "foreign=false"]
    ledger = Path(trained) / "test_evaluations.json"
    count = json.loads(ledger.read_text())["count"]
    run([*words, "splits=[test]"])
    run([*words, "splits=[test]"])  # reused, and no further look
    assert json.loads(ledger.read_text())["count"] == count + 1
    (results,) = results_in(tmp_path / "out")
    assert any(f"looked at {count + 1} times by now" in warning for warning in results["warnings"])
    before = json.loads((Path(trained) / "results.json").read_text())["models"]["pretrained"]["test"]
    after = results["models"]["pretrained"]["test"]
    for figure in ("auroc", "auprc", "balanced_accuracy", "brier", "ece"):
        assert after[figure]["value"] == pytest.approx(before[figure]["value"], abs=1e-4), figure
        assert results["trained_on_test"][figure] == before[figure]
    assert after["calibration"]["after"]["nll"] == pytest.approx(before["calibration"]["after"]["nll"], abs=1e-4)
    assert results["out_of_distribution"] is None


@pytest.mark.parametrize("again", ["quality", "renamed"])
def test_the_test_split_under_another_name_is_one_more_look_too(trained, tmp_path, again):
    """Imported again with another JPEG quality where the training data are gone, or the same pixels as of others."""
    theirs = tmp_path / "theirs"
    shutil.copytree(trained, theirs)
    options = synthetic.Options(
        source="synthetic", out=str(tmp_path / again), num_cases=60, size_px=48, num_processes=1, name=again,
        jpeg_quality=80 if again == "quality" else 92,
    )  # fmt: skip
    raw = read_raw(options)
    if again == "renamed":
        raw = replace(raw, cases=[replace(case, patient=f"new-{case.patient}") for case in raw.cases])
    else:
        told = json.loads((theirs / "config.json").read_text())
        told["config"]["data"] = str(tmp_path / "gone")
        (theirs / "config.json").write_text(json.dumps(told))
    write_dataset(raw, options)
    words = [str(theirs), f"data=[{tmp_path / again}]", f"out={tmp_path / 'out'}", RESAMPLES, "foreign=false"]
    ledger = theirs / "test_evaluations.json"
    count = json.loads(ledger.read_text())["count"]
    run([*words, *(["splits=[test]"] if again == "quality" else ["on_leak=warn"])])
    assert json.loads(ledger.read_text())["count"] == count + 1
    (results,) = results_in(tmp_path / "out")
    (told,) = [warning for warning in results["warnings"] if "looked at" in warning]
    own = pq.read_table(theirs / "predictions.parquet").to_pandas()
    own = own[own.split == "test"]
    number = own["patient"].nunique() if again == "quality" else len(own)
    shared = "patients" if again == "quality" else "images (pixel for pixel)"
    where = "stand in the test split of the dataset the model was trained on"
    assert told == f"{number} {shared} {where}, looked at {count + 1} times by now"


def test_numbers_beside_labels_have_figures_elsewhere_too(tmp_path):
    """As in the run that trained them; where a dataset lacks the number its labels are still judged, and it is said."""
    table = miniatures.echo_table(tmp_path / "raw")
    here = imported("table", table, tmp_path / "here", *ECHO)
    encoder = write_encoder(tmp_path / "encoder", here)
    config = recipe(here, encoder, tmp_path / "run", head="linear", full={}, numbers=["EF"])
    finetune(config)
    lines = table.read_text().splitlines()
    lines[-1] = ",".join([*lines[-1].split(",")[:3], "", "test"])  # of one test case the number is not known
    table.write_text("\n".join(lines) + "\n")
    some = imported("table", table, tmp_path / "some", *ECHO)
    without = imported("table", table, tmp_path / "without", *(word for word in ECHO if not word.startswith("numbers")))
    locations = [dataset.location for dataset in (here, some, without)]
    run([config.out, f"data=[{','.join(locations)}]", f"out={tmp_path / 'out'}", RESAMPLES, "splits=[test]"])
    found = {result["dataset"]["fingerprint"]: result for result in results_in(tmp_path / "out")}
    before = json.loads((tmp_path / "run" / "results.json").read_text())["models"]["pretrained"]["test"]
    same, fewer, none = (found[d.fingerprint]["models"]["pretrained"]["test"] for d in (here, some, without))
    assert same["auroc"]["value"] == pytest.approx(before["auroc"]["value"])
    for figure in ("mae", "rmse", "pearson", "spearman"):
        told, expected = same["numbers"]["EF"][figure], before["numbers"]["EF"][figure]
        assert told["value"] == pytest.approx(expected["value"], abs=1e-4)
        assert told["low"] < told["value"] < told["high"]
    assert fewer["numbers"]["EF"]["cases"] == same["numbers"]["EF"]["cases"] - 1
    assert "numbers" not in none
    assert none["auroc"]["value"] == pytest.approx(before["auroc"]["value"])
    assert any("says nothing of EF" in warning for warning in found[without.fingerprint]["warnings"])
    (folder,) = (tmp_path / "out").glob(f"*-{here.fingerprint[:8]}")
    assert "Estimated numbers" in (folder / "report.html").read_text()
    frame = pq.read_table(folder / "predictions.parquet").to_pandas()
    mae = np.abs(frame["number.EF"] - frame["predicted.EF"]).mean()
    assert same["numbers"]["EF"]["mae"]["value"] == pytest.approx(mae)


def test_foreign_images_are_measured_from_those_whose_class_is_known(tmp_path):
    """A frame with a number alone teaches the model, but shows what no class looks like."""
    table = miniatures.echo_table(tmp_path / "raw")
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    for row in rows[:12]:
        row[2] = ""
    table.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    dataset = imported("table", table, tmp_path / "here", *ECHO)
    config = recipe(
        dataset, write_encoder(tmp_path / "encoder", dataset), tmp_path / "run", head="linear", full={}, numbers=["EF"]
    )
    finetune(config)
    train = json.loads((tmp_path / "run" / "results.json").read_text())["cohort"]["train"]
    classified = sum(train["cases_per_class"].values())
    assert 0 < classified < train["cases"] == train["images"]
    run([config.out, f"data=[{dataset.location}]", f"out={tmp_path / 'out'}", RESAMPLES, "splits=[test]"])
    (results,) = results_in(tmp_path / "out")
    assert results["out_of_distribution_counts"]["reference_images"] == classified


def test_a_url_in_somebody_s_results_is_not_gone_to(trained, elsewhere, tmp_path, monkeypatch):
    """With the keys of whoever evaluates them."""
    theirs = tmp_path / "theirs"
    shutil.copytree(trained, theirs)
    told = json.loads((theirs / "config.json").read_text())
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    # The driver of such a place connects as it is made.
    told["config"]["data"] = f"ftp://127.0.0.1:{listener.getsockname()[1]}/dataset"
    (theirs / "config.json").write_text(json.dumps(told))
    asked = []
    monkeypatch.setattr(foreign, "open_dataset", lambda location, place: asked.append(location) or 1 / 0)
    first, second = json.loads((theirs / "results.json").read_text())["labels"][:2]
    label_map = f"label_map={{their {first}: {first}, their {second}: {second}}}"
    run([str(theirs), f"data=[{elsewhere}]", f"out={tmp_path / 'out'}", RESAMPLES, label_map])
    (results,) = results_in(tmp_path / "out")
    with listener, pytest.raises(BlockingIOError):
        listener.accept()
    assert asked == [] and any("was behind a URL (training_data=DIR names it)" in said for said in results["warnings"])


def test_patients_of_equal_numbers_are_refused_with_the_mend_for_two_hospitals(tmp_path):
    """And evaluated on once each hospital has a keyring of its own."""

    def hospital(name: str, seed: int, keyring: str) -> Dataset:
        options = synthetic.Options(
            source="synthetic", out=str(tmp_path / name), num_cases=50, size_px=48, num_processes=1, seed=seed,
            name=name, ids="keyed", keyring=str(tmp_path / keyring),
        )  # fmt: skip
        write_dataset(read_raw(options), options)
        return open_dataset(options.out)

    (tmp_path / "ours.json").write_text(json.dumps({"version": 1, "id_key": "1f" * 32, "split_salt": "2e" * 32}))
    (tmp_path / "ours.json").chmod(0o600)
    ours = hospital("ours", 0, "ours.json")
    config = recipe(ours, write_encoder(tmp_path / "encoder", ours), tmp_path / "trained", head="linear", full={})
    finetune(config)
    namesakes, apart = hospital("namesakes", 3, "ours.json"), hospital("apart", 3, "theirs.json")
    words = [config.out, f"out={tmp_path / 'out'}", RESAMPLES, "foreign=false"]
    mend = r"\(two hospitals\), import each with a keyring= of its own$"
    with pytest.raises(InputError, match=rf"on \d+ patients and 0 images of namesakes, .* equal numbers {mend}"):
        run([*words, f"data=[{namesakes.location}]"])
    run([*words, f"data=[{apart.location}]"])


def test_who_was_learned_from_is_refused(trained, synthetic_dataset, elsewhere, tmp_path):
    words = [trained, f"data=[{synthetic_dataset.location}]", f"out={tmp_path / 'out'}", RESAMPLES, "foreign=false"]
    train, val = (len(np.unique(synthetic_dataset.patient_of[synthetic_dataset.rows([s])])) for s in ("train", "val"))
    with pytest.raises(InputError, match=f"was trained or pretrained on {train + val} patients and"):
        run(words)
    with pytest.raises(InputError, match=rf"on {val} patients"):
        run([*words, "splits=[val]"])
    assert not (tmp_path / "out").exists()
    run([*words, "on_leak=warn"])
    (results,) = results_in(tmp_path / "out")
    assert any(warning.startswith("LEAKAGE") for warning in results["warnings"])
    assert not any(synthetic_dataset.location in said or "split has" in said for said in results["warnings"])
    # The command on its page goes on in the same way.
    (told,) = (tmp_path / "out").glob("*/config.json")
    config = json.loads(told.read_text())["config"]
    words, _ = command(results, config)
    again = load_config(EvaluateConfig, ["results=RESULTS", *words[5:]])
    assert (again.on_leak, again.foreign) == ("warn", False)
    chosen = ("splits", "seed", "bootstrap")
    assert again.model_dump(mode="json", include=set(chosen)) == {name: config[name] for name in chosen}
    # By pixels too, whatever the patients are called.
    options = synthetic.Options(
        source="synthetic", out=str(tmp_path / "renamed"), num_cases=60, size_px=48, num_processes=1, name="renamed"
    )
    raw = read_raw(options)
    write_dataset(replace(raw, cases=[replace(c, patient=f"new-{c.patient}") for c in raw.cases]), options)
    with pytest.raises(InputError, match=r"pretrained on 0 patients and [1-9]\d* images"):
        run([trained, f"data=[{tmp_path / 'renamed'}]", f"out={tmp_path / 'other'}", RESAMPLES])


def test_bad_input_is_said_in_one_line(trained, synthetic_dataset, elsewhere, tmp_path):
    def refused(match: str, *words: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            run([*words, f"out={tmp_path / 'out'}", RESAMPLES])
        assert "\n" not in str(caught.value)

    refused("do not match the model's. Wanted: ", trained, f"data=[{elsewhere}]")
    refused("'data' in the command line: give at least one dataset folder", trained, "data=[]")
    refused("do not match the model's. Wanted: ", trained, f"data={elsewhere}")
    refused("no results.json here", str(tmp_path), f"data=[{elsewhere}]")
    refused("label_map: 'nothing' is not known", trained, f"data=[{elsewhere}]", "label_map={nothing: unseen}")
    test_twice = f"data=[{synthetic_dataset.location},{synthetic_dataset.location}]"
    refused("same dataset twice", trained, test_twice, "splits=[test]")
    labels = json.loads((Path(trained) / "results.json").read_text())["labels"]
    label_map = f"label_map={{their {labels[0]}: {labels[0]}, their {labels[1]}: {labels[1]}}}"
    refused("not what .* was trained on", trained, f"data=[{elsewhere}]", label_map, f"training_data={elsewhere}")
    assert not (tmp_path / "out").exists()


def test_results_that_were_changed_are_not_evaluated_and_an_evaluation_that_was_is_made_again(
    trained, elsewhere, tmp_path, capsys
):
    def changed(file: Path) -> None:
        told = json.loads(file.read_text())
        told["models"]["pretrained"]["test"]["auroc"]["value"] = 0.999
        file.write_text(json.dumps(told))

    labels = json.loads((Path(trained) / "results.json").read_text())["labels"]
    label_map = f"label_map={{their {labels[0]}: {labels[0]}, their {labels[1]}: {labels[1]}}}"
    words = [f"data={elsewhere}", f"out={tmp_path / 'out'}", RESAMPLES, "foreign=false", label_map]
    run([trained, *words])
    (file,) = (tmp_path / "out").glob("*/results.json")
    before = json.loads(file.read_text())["models"]
    changed(file)
    capsys.readouterr()
    run([trained, *words])
    assert "reused" not in capsys.readouterr().out
    assert json.loads(file.read_text())["models"] == before
    run([trained, *words])
    assert "reused" in capsys.readouterr().out

    shutil.copytree(trained, tmp_path / "altered")
    changed(tmp_path / "altered/results.json")
    with pytest.raises(InputError, match=r"results\.json was altered \(its own hash differs\); run the command that"):
        run([str(tmp_path / "altered"), *words])
