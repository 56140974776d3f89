"""Whole trainings of head=full with all that it offers: on two processes as on one, resumed, stopped early, merged."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from clusters.config import InputError
from data.dataset import Dataset
from finetune.cohort import choose_cohort
from finetune.config import FinetuneConfig
from finetune.contenders import contenders, load
from finetune.full_batches import Chosen, FullBatches, Targets
from finetune.heads import Head, pool_images
from finetune.run import finetune, work
from pretrain.encoder_folder import load_encoder
from pretrain.stage import Samples
from pretrain.views import ViewConfig
from tests import rank_tasks
from tests.finetune_runs import recipe, write_encoder
from tests.ranks import Ranks

CASES = {
    "epochs": 2,
    "batch_size": 12,
    "pooling": "attention",
    "images_per_case": 2,
    # A small rate: a large one makes rounding errors grow until they hide whether the runs are the same.
    "optim": {"name": "sgd", "lr": 0.003, "layer_decay": 0.7},
    "augmentation": {"mixup": 0.4, "cutmix": 1.0},
    "loss": {"label_smoothing": 0.1, "class_balanced_beta": 0.9},
}


@pytest.fixture(scope="module")
def encoder(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("full") / "resnet", synthetic_dataset)


@pytest.fixture(scope="module")
def trained(synthetic_dataset: Dataset, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """Cases with attention, mixed, by layer-wise rates, in one piece; not to be altered."""
    config = recipe(synthetic_dataset, encoder, tmp_path_factory.mktemp("full") / "out", full=CASES)
    work(config)
    return config


def training(config: FinetuneConfig) -> Path:
    return Path(config.out) / "training" / "pretrained"


def records(config: FinetuneConfig, name: str) -> list[float]:
    lines = [json.loads(line) for line in (training(config) / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(config: FinetuneConfig) -> dict[str, Tensor]:
    return safetensors.torch.load_file(training(config) / "model.safetensors")


def written(config: FinetuneConfig) -> bytes:
    return (training(config) / "model.safetensors").read_bytes()


def cut_off(config: FinetuneConfig, out: Path, after: int) -> FinetuneConfig:
    """The same run, killed after a step."""
    again = config.model_copy(update={"out": str(out)})
    shutil.copytree(training(config), training(again))
    for file in ("finished.json", "model.safetensors"):
        (training(again) / file).unlink()
    for checkpoint in (training(again) / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)
    return again


def test_mixed_cases_killed_and_resumed_equal_the_undisturbed_run(trained: FinetuneConfig, tmp_path: Path) -> None:
    again = cut_off(trained, tmp_path / "out", after=2)
    work(again)
    assert (training(again) / "model.safetensors").read_bytes() == (
        training(trained) / "model.safetensors"
    ).read_bytes()
    assert records(again, "loss") == records(trained, "loss")
    assert len(records(again, "loss")) > 4
    moved = weights(trained)["head.attention.score.weight"]
    assert (moved != 0).any()


def test_mixed_cases_train_on_two_processes_as_on_one(trained: FinetuneConfig, tmp_path: Path, ranks: Ranks) -> None:
    two = trained.model_copy(update={"out": str(tmp_path / "out")})
    ranks.run("finetune_work", two.model_dump(mode="json"))
    assert records(two, "loss") == pytest.approx(records(trained, "loss"), rel=1e-4)
    assert records(two, "val_auroc") == pytest.approx(records(trained, "val_auroc"), abs=1e-3)
    for name, expected in weights(trained).items():
        assert weights(two)[name].float().numpy() == pytest.approx(expected.float().numpy(), abs=1e-4), name


def test_losses_of_two_ranks_are_those_of_the_global_batch(ranks: Ranks) -> None:
    one = rank_tasks.label_losses(0)
    for answer in ranks.run("label_losses", 0):
        assert answer["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, gradient in one["gradients"].items():
        parts = [answer["gradients"][name] for answer in ranks.run("label_losses", 0)]
        # Data-parallel training takes the mean over ranks.
        torch.testing.assert_close(torch.cat(parts) / 2, gradient, rtol=1e-4, atol=1e-6)


def test_training_stops_once_validation_has_not_become_better_for_so_long(
    synthetic_dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    full = {"epochs": 12, "batch_size": 24, "train": "head", "patience": 2, "optim": {"name": "sgd", "lr": 0.5}}
    config = recipe(synthetic_dataset, encoder, tmp_path / "out", full=full)
    work(config)
    scores = records(config, "val_auroc")
    chosen = json.loads((training(config) / "finished.json").read_text())["chosen"]
    assert chosen["epoch"] == 1 + int(np.argmax(scores))
    assert chosen["val_auroc"] == max(scores)
    assert len(scores) == chosen["epoch"] + 2 < 12
    # Only the head was trained, and a resumed run stops at the same place.
    before = safetensors.torch.load_file(Path(encoder) / "encoder" / "model.safetensors")
    after = weights(config)
    assert all(torch.equal(tensor, after[f"encoder.{name}"]) for name, tensor in before.items())
    assert (after["head.weight"] != 0).any()
    again = cut_off(config, tmp_path / "again", after=10**9)
    work(again)
    assert records(again, "val_auroc") == scores
    assert (training(again) / "finished.json").read_bytes() == (training(config) / "finished.json").read_bytes()


def test_lora_with_contrast_is_resumed_exactly_and_written_as_plain_weights(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    location = write_encoder(tmp_path / "vit", synthetic_dataset, name="test_vit")
    full = {
        "epochs": 2, "batch_size": 24, "train": "lora", "pooling": "max", "images_per_case": 2,
        "loss": {"supcon_weight": 0.5, "m3ce_weight": 0.5}, "optim": {"name": "adamw", "lr": 3e-3},
    }  # fmt: skip
    config = recipe(synthetic_dataset, location, tmp_path / "out", full=full)
    finetune(config)
    plain, _ = load_encoder(location)
    names = set(plain.state_dict())
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    after = safetensors.torch.load_file(tmp_path / "out/model/encoder.safetensors")
    plain.load_state_dict(after)
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed and all(".attn." in name and name.endswith("weight") for name in changed)
    again = cut_off(config, tmp_path / "again", after=2)
    work(again)
    assert written(again) == written(config)


def test_the_results_of_a_case_are_those_of_its_pooled_images(
    trained: FinetuneConfig, synthetic_dataset: Dataset
) -> None:
    """model/ and predictions.parquet of the attention head: each image of a case has the case's probability."""
    import pyarrow.parquet as pq

    finetune(trained)
    out = Path(trained.out)
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    columns = [name for name in table if name.startswith("probability.")]
    assert (table.groupby(["split", "key"])[columns].nunique() == 1).all().all()
    state = safetensors.torch.load_file(out / "model/head.safetensors")
    head = Head(state["weight"].shape[1], state["weight"].shape[0], "attention")
    head.load_state_dict(state)
    features = torch.randn(6, head.in_features)
    assert pool_images(head(features).detach().numpy(), np.repeat([0, 1], 3), "attention").shape == (6, 5)
    pooling = json.loads((out / "model/model.json").read_text())["pooling"]
    assert "attention scores" in pooling
    page = (out / "report.html").read_text().replace("&#x27;", "'")
    assert f"A case's answer: {pooling} (of PCA" in page and "answer: mean of the probabilities" not in page


def test_a_batch_is_a_function_of_its_step_whoever_is_asked(
    trained: FinetuneConfig, synthetic_dataset: Dataset
) -> None:
    views = ViewConfig(size_px=32)
    batches = FullBatches(choose_cohort(synthetic_dataset, trained), views, trained)
    elsewhere: FullBatches = pickle.loads(pickle.dumps(batches))  # as to a loader process
    elsewhere(0)
    here, there = batches(3), elsewhere(3)
    assert torch.equal(here.mixing_B5, there.mixing_B5)
    assert torch.equal(here.views.rows_VB, there.views.rows_VB)
    assert torch.equal(here.views.crops_VBCHW, there.views.crops_VBCHW)
    assert here.views.rows_VB.shape == (4, 12) and not torch.equal(batches(2).mixing_B5, here.mixing_B5)


def test_images_of_a_case_are_drawn_without_repeats_and_partners_are_others() -> None:
    rows = np.arange(10, dtype=np.int64)
    samples = Samples.group(rows, np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3]), np.zeros(10, dtype=np.int64))
    config = FinetuneConfig.model_validate({"data": "/d", "encoder": "/e", "out": "/o", "full": CASES}).full
    chosen = Chosen(samples, config.model_copy(update={"images_per_case": 3}))
    seen = set()
    for turn in range(50):

        def uniforms(count: int, *key: object, turn: int = turn) -> np.ndarray:
            return np.random.default_rng([turn, *str(key).encode()]).random(count)

        own = chosen(0, samples[0], turn, uniforms)
        assert len(own) == 6 and len(set(own[:3])) == 3 and set(own[:3]) <= {0, 1, 2, 3}
        assert not set(own[3:]) & {0, 1, 2, 3}
        seen |= {own[:3]}
        few = chosen(1, samples[1], turn, uniforms)[:3]
        assert set(few) == {4, 5} and few[0] == few[2]
    assert len(seen) > 10


def test_a_case_weighs_what_its_images_weigh_together(trained: FinetuneConfig, synthetic_dataset: Dataset) -> None:
    cohort = choose_cohort(synthetic_dataset, trained)
    of_images = cohort.training_weights("balanced")
    targets = Targets(cohort, trained.model_copy(update={"class_weighting": "balanced"}))
    _, first, place = np.unique(synthetic_dataset.case_of[cohort.train], return_index=True, return_inverse=True)
    assert targets.weight_of[cohort.train][first] == pytest.approx(np.bincount(place, of_images), rel=1e-6)


def test_the_untrained_baseline_may_be_of_another_variant(
    synthetic_dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    changed = {"stem": "deep", "downsample": "averaged", "zero_gamma": False}
    alike, other = (
        recipe(synthetic_dataset, encoder, tmp_path / "out", baselines=["untrained"], untrained=values)
        for values in ({}, changed)
    )
    given, varied = contenders(alike), contenders(other)
    assert given[0].fingerprint == varied[0].fingerprint
    assert given[1].fingerprint != varied[1].fingerprint
    network, card = load(varied[1], other)
    assert (card.config.stem, card.config.downsample) == ("deep", "averaged")
    assert all(module.bn2.weight.any() for module in network.modules() if hasattr(module, "bn2"))  # type: ignore[operator]
    assert load(given[1], alike)[1].config.downsample == "strided"
    vit = write_encoder(tmp_path / "vit", synthetic_dataset, name="test_vit")
    config = recipe(synthetic_dataset, vit, tmp_path / "out", baselines=["untrained"], untrained=changed)
    with pytest.raises(InputError, match=r"does not take .*stem=deep"):
        contenders(config)


@pytest.mark.parametrize(
    ("full", "problem"),
    [
        ({"pooling": "mean", "batch_size": 60}, r"batch_size: 60 is more than the \d+ training cases"),
        ({"train": "lora"}, "has none; use all or last_N"),
        ({"train": "last_40"}, "blocks above its stem"),
        ({"loss": {"class_balanced_beta": 0.9}}, "weighs the classes already"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(
    synthetic_dataset: Dataset, encoder: str, tmp_path: Path, full: dict[str, object], problem: str
) -> None:
    from finetune.checks import check_full

    full = {"batch_size": 24} | full
    config = recipe(synthetic_dataset, encoder, tmp_path / "out", full=full, class_weighting="balanced")
    with pytest.raises(InputError, match=problem):
        check_full(config, choose_cohort(synthetic_dataset, config), contenders(config))
