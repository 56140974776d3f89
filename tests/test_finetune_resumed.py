"""Full fine-tuning that was cut off goes on exactly: on as many ranks to the bit, on others to rounding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.dataset import Dataset
from finetune.config import FinetuneConfig
from finetune.run import finetune, work
from tests.fault_runs import ROOT, wait_for
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import WAYS, chosen, configured, cut_off, halfway, records, scores, training, weights, written
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def encoder(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("resumed") / "resnet", synthetic_dataset)


@pytest.fixture(scope="module", params=WAYS)
def by_two(
    request: pytest.FixtureRequest, synthetic_dataset: Dataset, ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> FinetuneConfig:
    """A run of each way, trained by two ranks in one piece; not to be altered."""
    config = configured(request.param, synthetic_dataset, tmp_path_factory.mktemp("resumed"))
    ranks.run("finetune_work", config.model_dump(mode="json"))
    return config


def test_two_ranks_that_were_cut_off_go_on_bit_for_bit(by_two: FinetuneConfig, tmp_path: Path, ranks: Ranks) -> None:
    again = cut_off(by_two, tmp_path / "out", after=halfway(by_two))
    assert len(records(by_two, "loss")) > 4
    ranks.run("finetune_work", again.model_dump(mode="json"))
    assert written(again) == written(by_two)
    assert records(again, "loss") == records(by_two, "loss") and scores(again) == scores(by_two)


def test_one_process_goes_on_from_what_two_ranks_left(by_two: FinetuneConfig, tmp_path: Path) -> None:
    after = halfway(by_two)
    again = cut_off(by_two, tmp_path / "out", after)
    work(again)
    losses, expected = records(again, "loss"), records(by_two, "loss")
    assert losses[:after] == expected[:after] and losses == pytest.approx(expected, rel=1e-4)
    assert chosen(again) == chosen(by_two)
    for name, tensor in weights(by_two).items():
        assert weights(again)[name].float().numpy() == pytest.approx(tensor.float().numpy(), abs=1e-4), name


def test_a_training_that_is_told_to_leave_saves_its_step_and_ends_with_143(
    synthetic_dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    """`kill PID` in the middle of steps that leave no checkpoint by themselves; the same command goes on."""
    full = {"epochs": 5, "batch_size": 8, "optim": {"name": "sgd", "lr": 0.01}}
    undisturbed, told = (
        recipe(synthetic_dataset, encoder, tmp_path / name, full=full, checkpoint={"every_s": 1e6, "keep": 50})
        for name in ("undisturbed", "told")
    )
    work(undisturbed)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(told.model_dump(mode="json")))
    command = [sys.executable, "-m", "finetune", str(tmp_path / "recipe.yaml")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: (training(told) / "metrics.jsonl").exists(), "the first record")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 143, said
    (saved,) = (training(told) / "checkpoints").glob("step-*")
    step, total = int(saved.name.removeprefix("step-")), len(records(undisturbed, "loss"))
    assert 0 < step < total, "it was told too late"
    assert f"pretrained, full: told to leave (SIGTERM); saved at step {step} of {total}" in said
    assert "Traceback" not in said and not (training(told) / "finished.json").exists()
    finetune(told)
    assert written(told) == written(undisturbed)
    assert records(told, "loss") == records(undisturbed, "loss")
    results = json.loads((tmp_path / "told/results.json").read_text())
    assert results["models"]["pretrained"]["head"] == "full" and results["test_evaluations"] == 1
