"""A machine's clock that is set right while a run goes on."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from clusters import checkpoint_files
from clusters.checkpoint import Checkpoints
from clusters.storage import Folder
from clusters.tracking import read_metrics
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from pretrain.training import Training
from tests.fault_runs import assert_same_state, recipe


def test_a_clock_that_jumps_back_makes_no_difference_to_a_run(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an hour, after half of its steps, as when a machine's clock is set right: saved and said is what would be."""
    step_of, real, behind = Training.step, time.time, [0.0]

    def step(training: Training, number: int, *batch: Any) -> Any:
        behind[0] = 3600.0 if number >= 10 and jumps else 0.0
        return step_of(training, number, *batch)

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(time, "time", lambda: real() - behind[0])
    due_of = Checkpoints.due
    monkeypatch.setattr(Checkpoints, "due", lambda self, *told: self._writer.idle(60) and due_of(self, *told))
    for jumps in (False, True):
        run = tmp_path / str(jumps)
        values = recipe(synthetic_dataset, run, num_workers=0, steps=20, checkpoint={"every_s": 1e-9, "keep": 99})
        values["tracking"]["every_s"] = 1e-9
        pretrain(PretrainConfig.model_validate(values))
        behind[0] = 0.0
        saved = checkpoint_files.names(Folder(run / "1-simclr/checkpoints"))
        assert [name.step for name in saved] == list(range(1, 21)), "each is due by time"
        progress = [line for line in capsys.readouterr().out.splitlines() if "ETA" in line]
        assert [int(re.findall(r"step (\d+)/20", line)[0]) for line in progress] == list(range(1, 21))
        assert all(re.search(r"ETA \d+ s$", line) for line in progress), progress
        records = [record for record in read_metrics(Folder(run / "1-simclr")) if "loss" in record]
        assert [record["step"] for record in records] == list(range(1, 21))
        assert all(0 < record["samples_per_s"] < 1e6 for record in records)
        shares = [value for record in records for name, value in record.items() if name.startswith("time/")]
        assert shares and all(0 <= share <= 1 for share in shares)
        times = [record["time"] for record in records]
        assert (times[-1] < times[0]) == jumps, "the clock did not jump where it is read"
    assert_same_state(tmp_path / "True", tmp_path / "False")
