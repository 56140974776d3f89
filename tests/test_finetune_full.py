"""Whole trainings of head=full with all that it offers: on two processes as on one, resumed, stopped early, merged."""

import functools
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

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
from tests.finetune_ways import (
    CASES,
    WAYS,
    chosen,
    configured,
    cut_off,
    halfway,
    records,
    scores,
    training,
    weights,
    written,
)
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def encoder(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("full") / "resnet", synthetic_dataset)


@pytest.fixture(scope="module")
def in_one_piece(
    synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], FinetuneConfig]:
    """A run of each way, trained once by one process; not to be altered."""

    @functools.cache
    def run(way: str) -> FinetuneConfig:
        config = configured(way, synthetic_dataset, tmp_path_factory.mktemp("full"))
        work(config)
        return config

    return run


@pytest.fixture(scope="module")
def trained(in_one_piece: Callable[[str], FinetuneConfig]) -> FinetuneConfig:
    """Cases with attention, mixed, by layer-wise rates, in one piece; not to be altered."""
    return in_one_piece("cases")


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_the_undisturbed_run(
    way: str, in_one_piece: Callable[[str], FinetuneConfig], tmp_path: Path
) -> None:
    whole = in_one_piece(way)
    again = cut_off(whole, tmp_path / "out", after=halfway(whole))
    work(again)
    assert written(again) == written(whole)
    assert records(again, "loss") == records(whole, "loss") and scores(again) == scores(whole)
    assert len(records(again, "loss")) > 4
    if way == "cases":
        assert (weights(whole)["head.attention.score.weight"] != 0).any()


@pytest.mark.parametrize("way", WAYS)
def test_training_on_two_processes_is_as_on_one(
    way: str, in_one_piece: Callable[[str], FinetuneConfig], tmp_path: Path, ranks: Ranks
) -> None:
    one = in_one_piece(way)
    two = one.model_copy(update={"out": str(tmp_path / "out")})
    ranks.run("finetune_work", two.model_dump(mode="json"))
    assert records(two, "loss") == pytest.approx(records(one, "loss"), rel=1e-4)
    assert scores(two) == pytest.approx(scores(one), abs=1e-3) and chosen(two) == chosen(one)
    for name, expected in weights(one).items():
        assert weights(two)[name].float().numpy() == pytest.approx(expected.float().numpy(), abs=1e-4), name


@pytest.mark.parametrize(
    ("way", "moves"), [("last blocks", "encoder.layer[34]"), ("lora", r"encoder.blocks.\d+.attn"), ("patience", "head")]
)
def test_what_is_frozen_stays_as_it_was_and_the_rest_moves(
    way: str, moves: str, in_one_piece: Callable[[str], FinetuneConfig]
) -> None:
    config = in_one_piece(way)
    before = safetensors.torch.load_file(Path(config.encoder) / "encoder" / "model.safetensors")
    after = {name.removeprefix("encoder."): tensor for name, tensor in weights(config).items()}
    moved = {f"encoder.{name}" for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert bool(moved) == (moves != "head") and all(re.match(moves, name) for name in moved)
    assert (after["head.weight"] != 0).any()


def test_losses_of_two_ranks_are_those_of_the_global_batch(ranks: Ranks) -> None:
    one = rank_tasks.label_losses(0)
    for answer in ranks.run("label_losses", 0):
        assert answer["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, gradient in one["gradients"].items():
        parts = [answer["gradients"][name] for answer in ranks.run("label_losses", 0)]
        # Data-parallel training takes the mean over ranks.
        torch.testing.assert_close(torch.cat(parts) / 2, gradient, rtol=1e-4, atol=1e-6)


def test_training_stops_once_validation_has_not_become_better_for_so_long(
    in_one_piece: Callable[[str], FinetuneConfig], tmp_path: Path
) -> None:
    config = in_one_piece("patience")
    found = scores(config)
    told = json.loads((training(config) / "finished.json").read_text())["chosen"]
    assert told["epoch"] == 1 + int(np.argmax(found))
    assert told["val_auroc"] == max(found)
    assert len(found) == told["epoch"] + 2 < 12
    # A run that was killed before its last words stops at the same place.
    again = cut_off(config, tmp_path / "again", after=10**9)
    work(again)
    assert scores(again) == found
    assert written(again) == written(config)


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
