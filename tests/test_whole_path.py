"""The whole path by its command lines: images, shards, SimCLR, MICLe, encoder, head, report; then again."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str) -> str:
    ended = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout + ended.stderr


def path(folder: Path) -> list[str]:
    data, encoder, out = (str(folder / name) for name in ("data", "pretrain", "finetune"))
    small = [f"stages.{number}.{setting}" for number in (0, 1) for setting in ("epochs=1", "batch_size=16")]
    small += ["views.size_px=32"]
    return [
        run("data", "import", "source=synthetic", f"out={data}", "num_cases=60", "size_px=48", "num_processes=1"),
        run("data", "verify", data),
        run("pretrain", "pretrain/recipes/synthetic.yaml", f"data={data}", f"run={encoder}", *small),
        run("finetune", "finetune/recipes/synthetic.yaml", f"data={data}", f"encoder={encoder}", f"out={out}"),
    ]


@pytest.mark.timeout(600)
def test_from_photographs_to_a_report_and_again(tmp_path: Path) -> None:
    path(tmp_path)
    for name in (
        "data/manifest.json",
        "pretrain/1-simclr/metrics.jsonl",
        "pretrain/2-micle/metrics.jsonl",
        "pretrain/2-micle/encoder/model.safetensors",
        "pretrain/encoder/model.safetensors",
        "pretrain/encoder/config.json",
        "pretrain/encoder/README.md",
        "pretrain/encoder/seen.parquet",
        "finetune/report.html",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    results = json.loads((tmp_path / "finetune/results.json").read_text())
    assert results["test_evaluations"] == 1
    assert set(results["models"]) >= {"pretrained", "untrained"}
    predictions = pq.read_table(tmp_path / "finetune/predictions.parquet").to_pylist()
    test_rows = [(row["model"], row["member"]) for row in predictions if row["split"] == "test"]
    assert len(test_rows) == len(set(test_rows))

    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    said = path(tmp_path)
    assert "reused" in said[0]
    assert "1-simclr: reused" in said[2]
    assert "2-micle: reused" in said[2]
    assert "reused" in said[3]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before
