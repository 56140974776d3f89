"""Full fine-tuning on two real Ray workers, one of which is killed: the bytes of two processes left alone."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from data.dataset import Dataset
from tests.fault_runs import ROOT, wait_for
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import CASES, records, written
from tests.ranks import Ranks


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_no_bit_of_what_is_learned(
    synthetic_dataset: Dataset, tmp_path: Path, ranks: Ranks
) -> None:
    encoder = write_encoder(tmp_path / "resnet", synthetic_dataset)
    full = {**CASES, "epochs": 20}
    undisturbed = recipe(synthetic_dataset, encoder, tmp_path / "undisturbed", full=full)
    ranks.run("finetune_work", undisturbed.model_dump(mode="json"))
    steps = len(records(undisturbed, "loss"))

    killed = recipe(synthetic_dataset, encoder, tmp_path / "killed", full=full, cluster={"num_workers": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(killed.model_dump(mode="json")))
    words = [sys.executable, "-m", "finetune", str(tmp_path / "recipe.yaml")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(words, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    training = tmp_path / "killed/training/pretrained"
    saved = "checkpoints/step-*/MANIFEST.json"
    wait_for(lambda: driver.poll() is not None or any(training.glob(saved)), "a checkpoint")
    family = psutil.Process(driver.pid).children(recursive=True)
    workers = [child for child in family if any("RayTrainWorker" in word for word in child.cmdline()[:1])]
    assert len(workers) == 2, driver.communicate()[0] if driver.poll() is not None else family
    workers[1].kill()
    taken = (training / "metrics.jsonl").read_text().count('"loss"')
    said, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, said
    assert taken < steps, "it was killed too late"
    assert "pretrained, full: resumed at step" in said
    assert written(killed) == written(undisturbed)
    assert records(killed, "loss") == records(undisturbed, "loss")
