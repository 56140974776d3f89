"""Bad input to a training: each is one line that says what, where and how to mend it."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from clusters.config import InputError, load_config
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain

QUICK = ["encoder.name=resnet10t", "views.size_px=32", "precision=fp32", "tracking.wandb=disabled"]


def run(dataset: Dataset, folder: Path, *words: str, **stage: Any) -> None:
    settings = {"method": "simclr", "steps": 4, "batch_size": 8, "projection_hidden": 16, "projection_dim": 8, **stage}
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"stages": [settings]}))
    where = [f"data={dataset.location}", f"run={folder / 'run'}"]
    pretrain(load_config(PretrainConfig, [str(recipe), *where, *QUICK, *words]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["stages.0.batch_size=1"],
            "batch_size' in .*: must be 2 or more, since a sample is told apart from the others",
        ),
        (["stages.0.batch_size=0"], "batch_size' in .*: must be 2 or more"),
        (["stages.0.temperature=0"], r"temperature' in .*: .*greater than or equal to 0.01 \(got 0\)"),
        (["cluster.num_workers=3"], "8 cannot be divided equally among 3 workers; choose a multiple"),
        (["compute.batch_norm_group=3"], "batch_norm_group: 3 does not divide stages.0.batch_size, 8"),
        (["compute.batch_norm_group=2"], "groups of 2 of 8 samples need 4 workers or a multiple .* gives 1"),
        (["compute.batch_norm_group=1"], "greater than or equal to 2"),
        (["stages.0.ema=1"], "ema' in .*: .*less than 1"),
        (["compute.on_nonfinite=ignore"], "'stop' or 'skip'"),
        (["stages.0.method=byol", "stages.0.keep_projection_layers=3"], "3, but the projection head has 2 layers"),
        (["compute.checkpoint_activations=true", "encoder.name=dla46_c"], "timm cannot checkpoint 'dla46_c'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_started(
    synthetic_dataset: Dataset, tmp_path: Path, words: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        run(synthetic_dataset, tmp_path, *words)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


BROKEN = {"optim": {"name": "sgd", "lr": 1e30, "lr_scaling": "none", "warmup": 0}}


def test_a_run_whose_loss_is_not_finite_stops_with_the_batch_s_keys(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    """The weights on disk are those of before: finite, if large."""
    with pytest.raises(InputError, match=r"not finite at step 2, .*compute.on_nonfinite=skip") as refused:
        run(synthetic_dataset, tmp_path, "checkpoint.every_steps=1", "tracking.every_steps=4", **BROKEN)
    assert "\n" not in str(refused.value)
    named = json.loads((tmp_path / "run/1-simclr/not-finite.json").read_text())
    assert list(named) == ["2"]
    assert len(named["2"]) == 8
    assert set(named["2"]) <= set(synthetic_dataset.column("key").tolist())
    (checkpoint,) = (tmp_path / "run/1-simclr/checkpoints").glob("step-*/state.safetensors")
    assert all(bool(t.isfinite().all()) for t in safetensors.torch.load_file(checkpoint).values())


def test_such_steps_can_be_left_out(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until they are most: the one step that was taken has ruined the weights, which are not handed on."""
    with pytest.raises(InputError, match="3 of 4 steps were not finite and left out"):
        run(synthetic_dataset, tmp_path, "compute.on_nonfinite=skip", "tracking.every_steps=1", **BROKEN)
    assert list(json.loads((tmp_path / "run/1-simclr/not-finite.json").read_text())) == ["2", "3", "4"]
    assert "not finite at step 4" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/1-simclr/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("loss") is not None] == [1]
    assert not (tmp_path / "run/encoder").exists()
