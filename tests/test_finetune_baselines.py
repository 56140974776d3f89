"""The baselines that reviewers ask for, in the same command and table."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

from clusters.config import InputError
from data.loader import evaluation_batches
from finetune.baselines import check_baselines, fit_baseline, logits_of, orb_descriptors
from finetune.checks import check_full
from finetune.cohort import choose_cohort
from finetune.contenders import ORB_KEYPOINTS, absolute_baseline, contenders, load
from finetune.run import finetune
from finetune.tasks import Binary, MultiClass
from pretrain.encoder_folder import encoder_folder
from tests.finetune_runs import NAME, recipe


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of others' weights for the test network, classifier included, as timm writes it."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
    safetensors.torch.save_file(timm.create_model(NAME).state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def compared(finetuned, synthetic_dataset, weights, tmp_path_factory):
    """A linear run with the baselines that are quick on small images."""
    out = tmp_path_factory.mktemp("compared") / "out"
    words = ["untrained", "pca", "orb", "knn", f"imagenet:{weights}"]
    config = recipe(synthetic_dataset, finetuned.encoder, out, head="linear", baselines=words)
    finetune(config)
    return config


def test_all_baselines_stand_in_one_table(compared, finetuned, weights):
    results = json.loads((Path(compared.out) / "results.json").read_text())
    models = results["models"]
    assert list(models) == ["pretrained", "untrained", "pca", "orb", "knn", "imagenet"]
    assert {row["baseline"] for row in results["comparisons"]} == set(models) - {"pretrained"}
    for model in models.values():
        assert 0 <= model["test"]["auroc"]["value"] <= 1
    assert models["orb"]["chosen"]["C"] in (0.01, 0.1, 1.0, 10.0)
    assert models["knn"]["chosen"]["neighbours"] in (5, 10, 20)
    assert models["imagenet"]["title"] == f"{NAME}, theirs.safetensors"
    assert weights not in (Path(compared.out) / "results.json").read_text()
    told = f"{NAME}, theirs.safetensors: weights of others, of which nobody knows whether they were trained on test"
    assert any(warning.startswith(told) for warning in results["warnings"])
    assert told in (Path(compared.out) / "report.html").read_text()
    # The neighbours go by the features that are there already.
    assert sorted(p.name.rsplit("-", 1)[0] for p in (Path(compared.out) / "features").iterdir()) == [
        "features-imagenet", "features-orb", "features-pca", "features-pretrained", "features-untrained",
    ]  # fmt: skip


def test_weights_of_others_are_loaded_with_their_own_input_scale(finetuned, synthetic_dataset, weights, tmp_path):
    config = recipe(synthetic_dataset, finetuned.encoder, tmp_path, baselines=[f"imagenet:{weights}"])
    encoder, card = load(contenders(config)[1], config)
    given = safetensors.torch.load_file(weights)
    state = encoder.state_dict()
    assert all(torch.equal(state[name], given[name]) for name in state)
    known = timm.get_pretrained_cfg(NAME)
    assert known is not None
    assert (card.mean, card.std) == (known.mean, known.std)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The hub's cache, empty, and no way to the hub, as under tracking.privacy=strict."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_timm_s_own_weights_are_a_baseline_as_they_are_pretrained_from(
    finetuned, synthetic_dataset, weights, tmp_path, hub
):
    known = timm.get_pretrained_cfg(NAME)
    assert known is not None and known.hf_hub_id
    words = ["imagenet:timm:default"]
    config = recipe(synthetic_dataset, finetuned.encoder, tmp_path / "out", head="linear", baselines=words)
    with pytest.raises(InputError, match=rf"^baselines: imagenet: {known.hf_hub_id} cannot be fetched .* its path$"):
        finetune(config)

    snapshot = hub / f"models--{known.hf_hub_id.replace('/', '--')}/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    shutil.copy(weights, snapshot / "model.safetensors")
    finetune(config)
    results = json.loads((tmp_path / "out/results.json").read_text())
    model = results["models"]["imagenet"]
    assert model["title"] == f"{NAME}, timm {NAME}.{known.tag}"
    assert model["fingerprint"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert any("weights of others, of which nobody knows" in warning for warning in results["warnings"])
    assert "imagenet:timm:default" in (tmp_path / "out/report.html").read_text()

    encoder, card = load(contenders(config)[1], config)
    given = safetensors.torch.load_file(weights)
    assert all(torch.equal(tensor, given[name]) for name, tensor in encoder.state_dict().items())
    assert (card.mean, card.std) == (known.mean, known.std)


def test_a_network_that_timm_has_no_weights_for_is_told_what_to_give(monkeypatch, finetuned, synthetic_dataset, hub):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    config = recipe(synthetic_dataset, finetuned.encoder, Path("/none"), baselines=["vgg16:timm:default"])
    with pytest.raises(InputError, match=r"^baselines: vgg16: timm has no .* 'vgg16'; give a file, as vgg16:PATH$"):
        contenders(config)


def test_neighbours_are_those_of_scikit_learn(synthetic_dataset, tmp_path):
    """By cosine, one image a case."""
    cohort = choose_cohort(synthetic_dataset, recipe(synthetic_dataset, "", tmp_path))
    features = np.random.default_rng(0).normal(size=(synthetic_dataset.num_images, 6)).astype(np.float32)
    fitted = fit_baseline("knn", cohort, lambda rows: features[rows], recipe(synthetic_dataset, "", tmp_path))
    weights = cohort.training_weights("none")

    nearest = KNeighborsClassifier(fitted.chosen["neighbours"], metric="cosine", algorithm="brute")
    nearest.fit(features[cohort.train], cohort.class_of(cohort.train))
    near = nearest.kneighbors(features[cohort.test], return_distance=False)
    votes = np.stack([(weights[near] * (cohort.class_of(cohort.train)[near] == k)).sum(1) for k in range(5)], axis=1)
    expected = votes / votes.sum(1, keepdims=True)
    found = cohort.task.probabilities(fitted.logits(features[cohort.test]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_orb_finds_what_is_drawn_and_tells_it_apart(synthetic_dataset, tmp_path):
    """Squares against noise-free discs: their keypoints make words that an SVM separates on unseen images."""
    import cv2

    rng = np.random.default_rng(0)
    cohort = choose_cohort(synthetic_dataset, recipe(synthetic_dataset, "", tmp_path, label="melanoma"))
    pixels = np.full((synthetic_dataset.num_images, 224, 224, 3), 128, np.uint8)
    for image, truth in zip(pixels, np.nan_to_num(cohort.truth[:, 0])):
        for x, y in rng.integers(40, 184, (12, 2)).tolist():
            if truth:
                cv2.rectangle(image, (x - 14, y - 14), (x + 14, y + 14), (200, 200, 200), -1)
            else:
                cv2.circle(image, (x, y), 14, (200, 200, 200), -1)
    numbers = orb_descriptors(pixels.transpose(0, 3, 1, 2))
    assert numbers[:, 0].min() > 10
    fitted = fit_baseline("orb", cohort, lambda rows: numbers[rows], recipe(synthetic_dataset, "", tmp_path))
    found = cohort.task.probabilities(fitted.logits(numbers[cohort.test]))[:, 0]
    truth = cohort.truth[cohort.test, 0]
    assert ((found > 0.5) == (truth > 0.5)).mean() > 0.9
    assert fitted.chosen["val_auroc"] > 0.95


def test_an_image_without_keypoints_has_an_answer_too():
    numbers = orb_descriptors(np.zeros((2, 3, 224, 224), np.uint8))
    assert numbers.shape == (2, 1 + 32 * ORB_KEYPOINTS)
    assert not numbers.any()


@pytest.mark.parametrize("task", [MultiClass(["a", "b", "c"]), Binary(["a"])])
def test_logits_give_the_probabilities_back(task):
    values = np.random.default_rng(0).random((7, len(task.label_names)))
    values = values / values.sum(1, keepdims=True) if task.kind == "multiclass" else values
    np.testing.assert_allclose(task.probabilities(logits_of(task, values)), values, atol=1e-5)
    edge = np.eye(3)[:1] if task.kind == "multiclass" else np.array([[0.0]])
    assert np.isfinite(logits_of(task, edge)).all()


def test_an_untrained_network_of_another_input_scale_is_another(finetuned, synthetic_dataset, tmp_path):
    """Or two runs with one features= would share its features."""
    shutil.copytree(Path(finetuned.encoder) / "encoder", tmp_path / "other" / "encoder")
    card = tmp_path / "other" / "encoder" / "config.json"
    told = json.loads(card.read_text())
    told["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    card.write_text(json.dumps(told))

    def made(encoder: str, **changed: Any) -> str:
        return contenders(recipe(synthetic_dataset, encoder, tmp_path, baselines=["untrained"], **changed))[
            1
        ].fingerprint

    assert made(finetuned.encoder) == made(finetuned.encoder)
    assert made(str(tmp_path / "other")) != made(finetuned.encoder)


@pytest.mark.parametrize("name", ["vgg16", "inception_v3"])
def test_networks_of_the_literature_make_features(finetuned, synthetic_dataset, tmp_path, name):
    """Without a file they are untrained, and said to be."""
    config = recipe(synthetic_dataset, finetuned.encoder, tmp_path, baselines=[name], size_px=80)
    contender = contenders(config)[1]
    assert "untrained: no file of its weights was given" in contender.title
    if name == "inception_v3":  # VGG16's 138 million weights take their time
        encoder, card = load(contender, config)
        ((_, pixels),) = evaluation_batches(synthetic_dataset, synthetic_dataset.rows(["test"])[:2], 80, 2)
        assert encoder.eval()(pixels.float() / 255).shape == (2, 2048)
        assert card.size_px == 299
        assert card.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("name", "size_px"), [("vgg16", 32), ("inception_v3", 80)])
def test_networks_of_the_literature_are_loaded_from_a_file(finetuned, synthetic_dataset, tmp_path, name, size_px):
    """As timm writes them, classifier included, whatever the size of the images."""
    torch.manual_seed(6)
    given = timm.create_model(name).state_dict()
    safetensors.torch.save_file(given, tmp_path / "theirs.safetensors")
    words = [f"{name}:{tmp_path}/theirs.safetensors"]
    config = recipe(synthetic_dataset, finetuned.encoder, tmp_path / "out", baselines=words, size_px=size_px)
    contender = contenders(config)[1]
    assert contender.title.endswith(", theirs.safetensors") and str(tmp_path) not in contender.title
    encoder, card = load(contender, config)
    (tmp_path / "theirs.safetensors").unlink()  # VGG16's are half a gigabyte
    state = encoder.state_dict()
    assert len(state) > 20 and set(given) > set(state)
    assert all(torch.equal(tensor, given[key]) for key, tensor in state.items())
    known = timm.get_pretrained_cfg(name)
    assert known is not None and (card.mean, card.std) == (known.mean, known.std)


@pytest.mark.parametrize(("name", "title", "size_px"), [("vgg16", "VGG16", 32), ("inception_v3", "InceptionV3", 80)])
def test_a_network_of_the_literature_is_a_row_of_the_results(
    finetuned, synthetic_dataset, tmp_path, name, title, size_px
):
    """From its images to its figures, at the smallest size that it takes."""
    config = recipe(
        synthetic_dataset, finetuned.encoder, tmp_path, head="linear", baselines=[name], size_px=size_px,
        label_fraction=0.5,
    )  # fmt: skip
    finetune(config)
    results = json.loads((tmp_path / "results.json").read_text())
    models = results["models"]
    assert list(models) == ["pretrained", name]
    row, first = models[name], models["pretrained"]
    assert row["title"] == f"{title}, untrained: no file of its weights was given"
    assert (row["kind"], row["architecture"], row["head"]) == ("published", name, "linear")
    assert row["chosen"]["C"] in config.linear.strengths and len(row["tried"]) == len(config.linear.strengths)
    figure = row["test"]["auroc"]
    assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert row["test"].keys() == first["test"].keys() and row["test"]["per_class"].keys() == set(results["labels"])
    assert any(pair["model"] == "pretrained" and pair["baseline"] == name for pair in results["comparisons"])
    frame = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    mine = frame[frame.model == name]
    answers = mine[[f"probability.{label}" for label in results["labels"]]].to_numpy()
    assert len(mine) == (frame.model == "pretrained").sum()
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert len(np.unique(answers.round(9), axis=0)) > len(answers) / 2, "images are told apart"
    assert row["title"] in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("word", "full", "problem"),
    [
        ("inception_v3", {"train": "lora"}, "inception_v3 has none; use all or last_N"),
        ("vgg16", {"train": "last_40"}, r"last_40, but vgg16 has \d+ blocks above its stem"),
        ("imagenet", {"train": "last_40"}, rf"last_40, but {NAME} has \d+ blocks above its stem"),
    ],
)
def test_a_network_of_others_that_cannot_be_trained_so_is_refused_at_the_start(
    finetuned, synthetic_dataset, tmp_path, weights, word, full, problem
):
    words = [f"imagenet:{weights}" if word == "imagenet" else word]
    full = {"batch_size": 24, **full}
    config = recipe(synthetic_dataset, finetuned.encoder, tmp_path, baselines=words, size_px=80, full=full)
    with pytest.raises(InputError, match=problem):
        check_full(config, choose_cohort(synthetic_dataset, config), contenders(config)[1:])


def test_what_cannot_be_had_is_said_in_one_line(finetuned, synthetic_dataset, tmp_path, weights):
    def refused(match: str, *words: str, **changed) -> None:
        with pytest.raises(InputError, match=match) as caught:
            contenders(recipe(synthetic_dataset, finetuned.encoder, tmp_path, baselines=list(words), **changed))
        assert "\n" not in str(caught.value)

    refused("^baselines: imagenet: which weights\\? Give imagenet:timm:default, .* or imagenet:PATH with a", "imagenet")
    refused("^baselines: vgg16: .*/none.safetensors: no such file", f"vgg16:{tmp_path}/none.safetensors")
    refused("^baselines: imagenet: .*/x.pth is a pickle", f"imagenet:{tmp_path}/x.pth")
    refused("^baselines: inception_v3: .*not the weights of inception_v3", f"inception_v3:{weights}")
    refused("^baselines: inception_v3: 'inception_v3' does not take images of 32 px", "inception_v3", size_px=32)
    refused("'knn' is compared already", "knn", "knn")
    # Whom it has seen is looked at only where it is given as what it is.
    told = "is an encoder of Manyview; give its folder as a baseline, without 'imagenet:'"
    refused(told, f"imagenet:{finetuned.encoder}")
    file = encoder_folder(finetuned.encoder).file("model.safetensors")
    refused("^baselines: imagenet: .* is the file of a Manyview encoder; give its folder, which", f"imagenet:{file}")
    file = f"{finetuned.out}/model/encoder.safetensors"
    refused("^baselines: imagenet: .* is of a model fine-tuned with Manyview, whose patients", f"imagenet:{file}")


def test_neighbours_of_numbers_are_refused(finetuned, synthetic_dataset, tmp_path):
    class Numbers(Binary):
        number_names = ("ef",)

    entrants = contenders(recipe(synthetic_dataset, finetuned.encoder, tmp_path, baselines=["knn"]))
    with pytest.raises(InputError, match="knn tell classes apart, and ef of /d are numbers; take them out"):
        check_baselines(entrants, cast(Any, Numbers(["ef"])), "/d")


def test_paths_are_made_absolute_and_words_are_not():
    for word in ("untrained", "pca", "orb", "knn", "vgg16", "imagenet"):
        assert absolute_baseline(word) == word
    assert absolute_baseline("imagenet:w.safetensors") == f"imagenet:{Path.cwd()}/w.safetensors"
    for word in ("imagenet:timm:default", "vgg16:timm:default"):
        assert absolute_baseline(word) == word
    assert absolute_baseline("runs/other") == f"{Path.cwd()}/runs/other"
    assert absolute_baseline("vgg16:s3://b/w.safetensors") == "vgg16:s3://b/w.safetensors"
