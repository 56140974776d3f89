"""The path on real chest X-rays that have no importer of their own: a table with named columns."""

import json
from pathlib import Path

import pytest

from clusters.config import load_config
from data.dataset import open_dataset
from data.shards import write_dataset
from data.sources import read_raw, table
from data.verify import verify
from finetune.config import FinetuneConfig
from finetune.run import finetune
from pretrain.config import PretrainConfig
from pretrain.run import pretrain

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(400)
def test_chest_x_rays_by_a_table(shared_data: Path, tmp_path: Path) -> None:
    """Imported, verified, pretrained a few steps, fine-tuned on `label` with `patient_id` as patient."""
    data, run, out = (str(tmp_path / name) for name in ("data", "run", "out"))
    words = [f"raw={shared_data}/hannover_cxr/labels.csv", "image=image", "patient=patient_id", "label=label"]
    words += ["source=table", f"out={data}", f"keyring={tmp_path}/keyring.json", "splits.val=0.2", "splits.train=0.6"]
    options = load_config(table.Options, words)
    write_dataset(read_raw(options), options)
    dataset = open_dataset(data)
    verify(data)
    assert (dataset.num_images, dataset.task, dataset.label_names) == (243, "binary", ["pa"])
    assert dataset.manifest.counts.patients == 71
    raw_patients = {
        line.split(",")[1] for line in (shared_data / "hannover_cxr/labels.csv").read_text().splitlines()[1:]
    }
    assert not raw_patients & set(dataset.column("patient"))

    recipe = str(ROOT / "pretrain/recipes/synthetic.yaml")
    short = ["stages.0.epochs=0.5", "stages.0.batch_size=32", "stages.1.epochs=0.5", "stages.1.batch_size=32"]
    config = load_config(PretrainConfig, [recipe, f"data={data}", f"run={run}", "views.size_px=48", *short])
    pretrain(config.model_copy(update={"stages": config.stages[:1]}))

    recipe = str(ROOT / "finetune/recipes/hannover_cxr.yaml")
    finetune(load_config(FinetuneConfig, [recipe, f"data={data}", f"encoder={run}", f"out={out}"]))
    results = json.loads((tmp_path / "out/results.json").read_text())
    auroc = results["models"]["pretrained"]["test"]["auroc"]
    assert 0 <= auroc["low"] <= auroc["value"] <= auroc["high"] <= 1
    assert results["test_evaluations"] == 1
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
