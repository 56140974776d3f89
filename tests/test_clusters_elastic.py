"""Workers that come and go: the same batches, the same views and the same losses as if they had stayed."""

from pathlib import Path
from typing import Any

import pytest

from clusters import notice
from clusters.checkpoint import CheckpointConfig, Checkpoints
from clusters.config import InputError, load_config
from clusters.scaling import largest
from clusters.storage import Folder
from clusters.workers import ClusterConfig
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.fits import check_fits
from pretrain.footprint import footprint, usable
from pretrain.workers import elastic_remarks, possible_workers
from tests.elastic_tasks import Taken, recorded
from tests.ranks import Ranks

SAMPLES, BATCH_SIZE = {"simclr": 126, "micle": 48}, {"simclr": 42, "micle": 16}
STEPS = 6
"""Two epochs of three steps. The recipe asks for more, so that no test waits for the end of a stage."""


def values(dataset: Dataset, run: Path, method: str = "simclr", **changes: Any) -> dict[str, Any]:
    """A small network.

    The order of a batch's rows alone changes the gradient's sum by a few 1e-4 in float32. At this rate that changes
    the losses that follow by less than 1e-5, and a step that is left out changes them by ten times as much or more.
    """
    optim = {"name": "sgd", "lr": 1e-5, "lr_scaling": "none", "warmup": 0}
    stage = {"method": method, "epochs": 3, "batch_size": BATCH_SIZE[method], "optim": optim, "temperature": 0.5}
    return {
        "data": dataset.location,
        "run": str(run),
        "splits": ["train", "val"] if method == "simclr" else ["train"],
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "views": {"size_px": 32},
        "stages": [{**stage, "projection_hidden": 16, "projection_dim": 8}],
        "probe": {"every_steps": 100},
        "tracking": {"wandb": "disabled"},
        "checkpoint": {"every_steps": 2},
        "cluster": {"num_workers": [1, 2]},
        "gone_before": STEPS,
        **changes,
    }


@pytest.mark.parametrize("method", ["simclr", "micle"])
def test_two_workers_then_one_then_two_learn_as_two_do(
    method: str, synthetic_dataset: Dataset, tmp_path: Path, ranks: Ranks
) -> None:
    undisturbed: list[Taken] = ranks.run("recorded", values(synthetic_dataset, tmp_path / "two", method))[0]
    recipe = values(synthetic_dataset, tmp_path / "elastic", method)
    parts: list[list[Taken]] = [
        ranks.run("recorded", {**recipe, "gone_before": 3})[0],  # their last checkpoint stands at step 2
        recorded({**recipe, "gone_before": 4}),
        ranks.run("recorded", recipe)[0],
    ]

    assert [[taken.step for taken in part] for part in parts] == [[0, 1, 2], [2, 3], [4, 5]]
    for part in parts:
        assert [taken.fed for taken in part] == [undisturbed[taken.step].fed for taken in part]
        assert part[0].loss == pytest.approx(undisturbed[part[0].step].loss, abs=1e-5)

    # What the losses tell: a step that is left out is seen in the next
    spoilt = recorded({**values(synthetic_dataset, tmp_path / "spoilt", method), "gone_before": 3, "left_out": 1})
    assert spoilt[1].loss == pytest.approx(undisturbed[1].loss, abs=1e-5)
    assert abs(spoilt[2].loss - undisturbed[2].loss) > 1e-4

    kept = {taken.step: [sample for sample, _ in taken.fed] for part in parts for taken in part}
    for epoch in (range(3), range(3, STEPS)):
        assert sorted(sample for step in epoch for sample in kept[step]) == list(range(SAMPLES[method]))


def test_a_notice_is_heeded_by_the_next_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), CheckpointConfig(every_s=1e9))
    assert not checkpoints.due(1)
    notice.give()
    assert checkpoints.due(2)
    checkpoints.save(2, {"step": 2})
    checkpoints.wait()
    assert not notice.is_given()
    assert not checkpoints.due(3)


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [("0", [1]), ("3", [3]), ("[1,4]", [1, 2, 3, 4]), ("[2, 2]", [2])],
)
def test_a_number_of_workers_or_the_fewest_and_the_most(asked: str, sizes: list[int]) -> None:
    config = load_config(ClusterConfig, [f"num_workers={asked}"])
    assert list(config.sizes) == sizes
    assert config.elastic == (len(sizes) > 1)
    assert ClusterConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("asked", ["[4,1]", "[0,2]", "[1,2,3]", "[1]", "-1", "[1,two]", "some", "1.5", "true"])
def test_other_words_for_workers_are_refused_in_one_line(asked: str) -> None:
    with pytest.raises(InputError, match=r"'num_workers' in the command line: give a whole number.*\[1,4\]") as refused:
        load_config(ClusterConfig, [f"num_workers={asked}"])
    assert "\n" not in str(refused.value)


def recipe_for(workers: Any, batch_size: int, **changes: Any) -> PretrainConfig:
    stage = {"method": "simclr", "steps": 4, "batch_size": batch_size}
    return PretrainConfig.model_validate(
        {"data": "/d", "run": "/r", "stages": [stage], "cluster": {"num_workers": workers}, **changes}
    )


def test_workers_hold_equal_shares_or_stand_by() -> None:
    assert possible_workers(recipe_for([1, 4], 256)) == [1, 2, 4]
    assert possible_workers(recipe_for([3, 5], 12)) == [3, 4]
    # Batch norm over 64 of 256 samples: four workers or more, each with a part of one group
    assert possible_workers(recipe_for([1, 8], 256, compute={"batch_norm_group": 64})) == [4, 8]
    with pytest.raises(InputError, match=r"none of 3 to 4 workers will do; .*10 cannot be divided equally among 3"):
        possible_workers(recipe_for([3, 4], 10))


def test_what_depends_on_the_number_of_workers_is_said() -> None:
    def said(config: PretrainConfig) -> str:
        return "\n".join(elastic_remarks(config, possible_workers(config)))

    assert said(recipe_for([1, 2], 256)) == ""
    assert "of 1 to 4 workers 1, 2, 4 can be used" in said(recipe_for([1, 4], 256))
    stochastic = {"encoder": {"name": "swin_tiny_patch4_window7_224"}, "views": {"size_px": 224}}
    assert "leaves out parts of itself at random" in said(recipe_for([1, 2], 256, **stochastic))
    assert said(recipe_for(2, 256, **stochastic)) == ""


def test_a_batch_must_fit_on_the_fewest_workers() -> None:
    config = recipe_for([1, 2], 64, encoder={"name": "test_resnet"}, views={"size_px": 32})
    needs = footprint(config, 0)
    gigabyte = next(size for size in range(10**6, 10**12, 10**6) if needs.needed(32, 2) <= usable(size))
    check_fits(config, 0, gigabyte, 2)
    with pytest.raises(InputError, match=r"on 1, the fewest of cluster.num_workers, 64 samples a GPU need"):
        check_fits(config, 0, gigabyte, 1)


def test_as_many_workers_as_there_is_room_for() -> None:
    assert [largest([1, 2, 4], room) for room in range(7)] == [0, 1, 2, 2, 4, 4, 4]
