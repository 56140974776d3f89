"""Searches of learning rate and weight decay around a tiny encoder: what is chosen, tested, reused and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from clusters.config import InputError, load_config
from clusters.storage import Folder
from data.dataset import open_dataset
from finetune.cohort import choose_cohort
from finetune.config import FinetuneConfig, SgdConfig
from finetune.contenders import contenders
from finetune.features import read_parts
from finetune.run import needs_of
from finetune.search import SearchConfig, search
from finetune.search_page import summary
from finetune.search_seeds import seeds_on_test
from finetune.sgd_head import train_head
from tests import miniatures
from tests.fault_runs import ROOT, wait_for
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.test_data_page import Outline


def searched(dataset, folder: Path, **changed) -> SearchConfig:
    encoder = write_encoder(folder / "pretrained", dataset)
    plain = recipe(dataset, encoder, folder / "out").model_dump()
    config = SearchConfig.model_validate({**plain, **changed})
    search(config)
    return config


@pytest.fixture(scope="module")
def linear(synthetic_dataset, tmp_path_factory) -> SearchConfig:
    """A finished search over heads of cached features."""
    grid = {"learning_rates": [1e-4, 0.1], "weight_decays": [0.0, 1e-3], "seeds": 2}
    return searched(synthetic_dataset, tmp_path_factory.mktemp("linear"), head="linear", grid=grid)


@pytest.fixture(scope="module")
def full(synthetic_dataset, tmp_path_factory) -> SearchConfig:
    """A finished search over whole trainings, one of which diverges."""
    grid = {"learning_rates": [0.01, 1e20], "weight_decays": [1e-4], "seeds": 2}
    return searched(synthetic_dataset, tmp_path_factory.mktemp("full"), grid=grid, full={"epochs": 1, "batch_size": 24})


def results_of(config: SearchConfig) -> dict:
    return json.loads((Path(config.out) / "search.json").read_text())


def test_the_best_pair_on_validation_is_tested_with_each_seed(linear):
    results = results_of(linear)
    assert [(row["lr"], row["weight_decay"]) for row in results["grid"]] == linear.pairs()
    assert results["chosen"]["val_auroc"] == max(row["val_auroc"] for row in results["grid"])
    assert [row["seed"] for row in results["seeds"]] == [0, 1]
    assert results["test_evaluations"] == 2
    aurocs = []
    for row in results["seeds"]:
        told = json.loads((Path(linear.out) / row["run"] / "results.json").read_text())
        assert told["identity"]["recipe"]["seed"] == row["seed"]
        sgd = told["identity"]["recipe"]["linear"]["sgd"]
        assert (sgd["lr"], sgd["weight_decay"]) == (results["chosen"]["lr"], results["chosen"]["weight_decay"])
        aurocs.append(told["models"]["pretrained"]["test"]["auroc"]["value"])
    assert results["test"]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
    assert results["test"]["auroc"]["sd"] == pytest.approx(np.std(aurocs, ddof=1))


def test_no_trial_but_the_chosen_one_sees_test_and_features_are_computed_once(linear):
    out, chosen = Path(linear.out), results_of(linear)["chosen"]
    tested = {path.parent.name for path in out.glob("runs/*/test_evaluations.json")}
    pair = f"lr-{chosen['lr']:g}-wd-{chosen['weight_decay']:g}"
    assert tested == {f"{pair}-seed-0", f"{pair}-seed-1"}
    assert len(list(out.glob("runs/*"))) == 4 + 1  # the first seed's run is the chosen trial itself
    assert len(list(out.glob("**/features-*"))) == 1


def test_a_trial_that_diverges_is_told_and_the_chosen_one_is_not_trained_again(full):
    results = results_of(full)
    failed, judged = results["grid"][1], results["grid"][0]
    assert "lower full.optim.lr" in failed["failed"]
    assert results["chosen"] == judged and judged["val_auroc"] >= 0
    run = Path(full.out) / "runs" / "lr-0.01-wd-0.0001-seed-0"
    weights = run / "training" / "pretrained" / "model.safetensors"
    assert weights.stat().st_mtime <= (run / "trial.json").stat().st_mtime
    assert (run / "report.html").exists()
    told = json.loads((run / "results.json").read_text())["models"]["pretrained"]
    assert told["chosen"]["val_auroc"] == judged["val_auroc"]
    page = " ".join(Outline((Path(full.out) / "search.html").read_text()).words)
    assert "diverged" in page and f"{judged['val_auroc']:.4f} *" in page


def test_a_seed_of_the_chosen_pair_that_diverges_is_told_and_left_out_of_the_mean(
    synthetic_dataset, tmp_path, monkeypatch, capsys
):
    tried = []

    def train(*given):
        tried.append(given[-1])
        if given[-1] == 1:
            raise InputError("the linear head's weights are not finite; lower linear.sgd.lr, which is 0.1")
        return train_head(*given)

    monkeypatch.setattr("finetune.linear.train_head", train)
    grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": 3}
    config = searched(synthetic_dataset, tmp_path, head="linear", grid=grid)
    results, printed = results_of(config), capsys.readouterr().out
    first, failed, third = results["seeds"]
    assert failed == {"seed": 1, "run": "runs/lr-0.1-wd-0-seed-1", "failed": failed["failed"]}
    assert "not finite" in failed["failed"] and results["test_evaluations"] == 2
    values = [row["test"]["auroc"] for row in (first, third)]
    told = results["test"]["auroc"]
    assert (told["mean"], told["sd"], told["seeds"]) == pytest.approx((np.mean(values), np.std(values, ddof=1), 2))
    assert "seed 1 diverged" in printed and "over 2 seeds" in printed
    page = " ".join(Outline((Path(config.out) / "search.html").read_text()).words)
    assert "3 seeds, of which 1 diverged" in page and "the figures are of the other seeds alone" in page
    tried.clear()
    search(config)
    assert tried == [] and results_of(config)["seeds"] == results["seeds"]


def test_where_every_seed_of_the_chosen_pair_diverges_nothing_is_told(tmp_path):
    runs = [FinetuneConfig(data="/d", encoder="/e", out=str(tmp_path / name)) for name in ("a", "b")]
    for run in runs:
        Folder(run.out).write_json("trial.json", {"failed": "the loss is nan"})
    with pytest.raises(InputError, match=r"grid.seeds: no seed of the chosen pair .* the first: the loss is nan"):
        seeds_on_test(runs, [0, 1])


def test_all_seeds_learn_from_the_same_patients_on_features_computed_once(synthetic_dataset, tmp_path):
    """The share of the recipe's seed, which was searched: the spread over seeds is that of training alone."""
    grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": 3}
    config = searched(synthetic_dataset, tmp_path, head="linear", label_fraction=0.3, seed=4, grid=grid)
    runs = [Path(config.out) / row["run"] for row in results_of(config)["seeds"]]
    told = [json.loads((run / "results.json").read_text()) for run in runs]
    assert [one["identity"]["recipe"]["seed"] for one in told] == [4, 5, 6]
    assert len({json.dumps(one["cohort"]["train"]) for one in told}) == 1
    expected = choose_cohort(synthetic_dataset, recipe(synthetic_dataset, "/e", tmp_path, label_fraction=0.3, seed=4))
    for seed in (4, 5, 6):
        cohort = choose_cohort(synthetic_dataset, config.trial(0.1, 0.0, seed))
        assert cohort.train.tolist() == expected.train.tolist()
    assert len(list(Path(config.out).glob("**/features-*"))) == 1
    first, *others = (one["identity"]["recipe"].get("label_seed") for one in told)
    assert first is None and others == [4, 4]
    chosen = config.model_copy(update={"label_seed": 9, "label_fraction": 0.5})
    assert [chosen.trial(0.1, 0.0, seed).label_seed for seed in (4, 5)] == [9, 9]


def test_a_search_of_all_labels_is_that_of_before_there_was_a_seed_of_labels(linear):
    for path in Path(linear.out).glob("runs/*/config.json"):
        assert "label_seed" not in json.loads(path.read_text())["identity"]["recipe"]


def test_batches_larger_than_the_training_split_are_refused_before_a_trial(synthetic_dataset, tmp_path):
    grid = {"learning_rates": [0.01, 0.1], "weight_decays": [0.0], "seeds": 1}
    with pytest.raises(InputError, match=r"full.batch_size: 5000 is more than the \d+ training images"):
        searched(synthetic_dataset, tmp_path, grid=grid, full={"epochs": 1, "batch_size": 5000})
    assert not (tmp_path / "out").exists()


def test_figures_of_numbers_have_their_mean_and_spread_over_seeds(tmp_path):
    dataset = imported("table", miniatures.echo_table(tmp_path / "raw"), tmp_path / "dataset", *ECHO)
    grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": 2}
    config = searched(open_dataset(dataset.location), tmp_path, head="linear", numbers=["EF"], grid=grid)
    results = results_of(config)
    runs = [Path(config.out) / row["run"] / "results.json" for row in results["seeds"]]
    figures = [json.loads(run.read_text())["models"]["pretrained"]["test"]["numbers"]["EF"] for run in runs]
    page = " ".join(Outline((Path(config.out) / "search.html").read_text()).words)
    assert set(results["test"]["numbers"]["EF"]) == {"mae", "rmse", "pearson", "spearman"}
    for name, shown in (("mae", "MAE"), ("rmse", "RMSE"), ("pearson", "Pearson"), ("spearman", "Spearman")):
        values = [one[name]["value"] for one in figures]
        over = results["test"]["numbers"]["EF"][name]
        assert (over["mean"], over["sd"], over["seeds"]) == pytest.approx((np.mean(values), np.std(values, ddof=1), 2))
        assert [row["test"]["numbers"]["EF"][name] for row in results["seeds"]] == values
        assert f"{shown}, EF" in page and f"{values[1]:.4f}" in page
    mae = results["test"]["numbers"]["EF"]["mae"]
    assert f"test MAE, EF: {mae['mean']:.4f} ± {mae['sd']:.4f} over 2 seeds" in summary(results)
    assert 0 < results["test"]["auroc"]["mean"] <= 1


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_trials_two_at_a_time_under_ray_and_a_driver_killed_find_the_same(linear, tmp_path):
    """The command as a person gives it, killed once some trials are done, and given again."""
    cluster = {"num_workers": 2, "cpus_per_worker": 1}
    told = linear.model_copy(update={"out": str(tmp_path / "out"), "features": None}).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**told, "cluster": cluster}))
    words = [sys.executable, "-m", "finetune", "search", str(tmp_path / "recipe.yaml")]
    settings = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **settings)
    runs = tmp_path / "out/runs"
    wait_for(lambda: driver.poll() is not None or any(runs.glob("*/trial.json")), "a trial")
    driver.kill()
    driver.wait()
    done = len(list(runs.glob("*/trial.json")))
    assert 0 < done < 4, "it was killed too late"
    again = subprocess.run(words, capture_output=True, timeout=600, **settings)
    assert again.returncode == 0, again.stdout + again.stderr
    left = int(again.stdout.split("4 pairs of learning rate and weight decay, ")[1].split()[0])
    assert 0 < left <= 4 - done, "Ray may have let a trial end that its driver did not live to see"
    ours, theirs = (json.loads((folder / "search.json").read_text()) for folder in (tmp_path / "out", Path(linear.out)))
    assert ours["grid"] == theirs["grid"] and ours["chosen"] == theirs["chosen"]
    assert ours["seeds"] == theirs["seeds"] and ours["test"] == theirs["test"]


def test_an_encoder_that_saw_test_patients_is_refused(linear, synthetic_dataset, tmp_path):
    leaky = write_encoder(tmp_path / "leaky", synthetic_dataset, ["train", "test"])
    with pytest.raises(InputError, match="so its test figures would mean nothing"):
        search(linear.model_copy(update={"encoder": leaky, "out": str(tmp_path / "out")}))
    assert not list(tmp_path.glob("out/runs/*"))


def test_features_that_are_no_numbers_are_no_divergence(linear, synthetic_dataset, tmp_path, monkeypatch):
    """Or every pair would be kept as one that has diverged, also once they are mended."""

    def spoilt(*given):
        values = read_parts(*given)
        values[3] = np.nan
        return values

    config = linear.model_copy(update={"out": str(tmp_path / "out")})
    with monkeypatch.context() as patch:
        patch.setattr("finetune.run.read_parts", spoilt)
        with pytest.raises(InputError, match="has features that are not finite"):
            search(config)
    assert not list(tmp_path.glob("out/runs/*/trial.json"))
    search(config)
    assert results_of(config)["chosen"]["val_auroc"] == results_of(linear)["chosen"]["val_auroc"]


def test_a_search_goes_on_where_it_was_and_takes_more_pairs(linear, capsys):
    before = results_of(linear)
    (Path(linear.out) / "runs" / "lr-0.1-wd-0-seed-0" / "trial.json").unlink()
    search(linear)
    assert "4 pairs of learning rate and weight decay, 1 to train" in capsys.readouterr().out
    assert results_of(linear)["grid"] == before["grid"]
    assert results_of(linear)["test_evaluations"] == 2
    more = linear.grid.model_copy(update={"learning_rates": [1e-4, 0.1, 1e-5]})
    search(linear.model_copy(update={"grid": more}))
    assert "6 pairs of learning rate and weight decay, 2 to train" in capsys.readouterr().out
    # Test was looked at for what was chosen before, too
    looked = [json.loads(path.read_text())["count"] for path in Path(linear.out).glob("runs/*/test_evaluations.json")]
    told = results_of(linear)
    assert told["test_evaluations"] == sum(looked)
    assert told["test_evaluations_of_earlier_choices"] == sum(looked) - 2
    assert sum(looked) == 4, "another pair is the best of more"
    assert (
        f"evaluated {sum(looked)} times, {sum(looked) - 2} of them for choices"
        in (Path(linear.out) / "search.html").read_text()
    )
    with pytest.raises(InputError, match=r"made with another config \(recipe.seed: 0 -> 3\)"):
        search(linear.model_copy(update={"seed": 3}))


def test_the_grid_is_the_papers():
    config = load_config(SearchConfig, ["data=/d", "encoder=/e", "out=/o"])
    assert np.log10(config.grid.learning_rates) == pytest.approx(np.linspace(-3.5, -0.5, 7), abs=1e-3)
    assert config.grid.weight_decays == [0, 1e-5, 1e-4, 1e-3]
    assert len(config.pairs()) == 28 and len({config.trial(*pair, 0).out for pair in config.pairs()}) == 28
    with pytest.raises(InputError, match="must not hold the same value twice"):
        load_config(SearchConfig, ["data=/d", "encoder=/e", "out=/o", "grid.learning_rates=[0.1,0.1]"])


def test_a_head_trained_long_enough_is_the_optimum_and_a_seed_gives_it_again():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(512, 5)).astype(np.float32)
    truth = (features[:, 0] + rng.logistic(size=512) > 0.5).astype(float)
    truth[:50] = np.nan
    config, weights = SgdConfig(lr=0.5, weight_decay=1e-2, epochs=200, batch_size=64), np.ones(512)
    found = [train_head(features, truth[:, None], weights, "sigmoid", config, seed)[0] for seed in (0, 0, 1)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()
    # The mean is over all images of a batch, those that are not labelled too.
    model = LogisticRegression(C=1 / (1e-2 * 512), tol=1e-8, max_iter=1000).fit(features[50:], truth[50:])
    assert found[0][:, 0] == pytest.approx(model.coef_[0], abs=0.02)


def test_room_is_asked_for_for_what_all_trials_and_seeds_keep(synthetic_dataset, tmp_path):
    encoder = write_encoder(tmp_path / "pretrained", synthetic_dataset)
    grid = {"learning_rates": [0.01, 0.1], "weight_decays": [0.0], "seeds": 3}
    changed = {"grid": grid, "checkpoint": {"keep": 2}, "cluster": {"num_workers": 2}}
    config = SearchConfig.model_validate({**recipe(synthetic_dataset, encoder, tmp_path).model_dump(), **changed})
    needs = needs_of(config, contenders(config)[:1], 2 + 3)
    state = 4 * (tmp_path / "pretrained/encoder/model.safetensors").stat().st_size
    assert (needs.kept_bytes, needs.written_bytes) == (5 * 2 * state, 2 * state)
    linear = config.model_copy(update={"head": "linear"})
    assert needs_of(linear, contenders(linear), 5).states == []
    compared = config.model_copy(update={"baselines": ["untrained", "vgg16", "pca"]})
    one, same, vgg16 = needs_of(compared, contenders(compared)).states  # each network that is trained leaves its own
    assert one == same == state
    assert vgg16 > 4 * 4 * 100_000_000
