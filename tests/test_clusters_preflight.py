"""What a node cannot do is said before anything waits for it, with the node's name and the mend."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import preflight
from clusters.config import InputError
from data.dataset import Dataset

ROOT = Path(__file__).parents[1]


def test_a_node_that_can_do_all_is_passed_and_nothing_is_left_behind(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    report = preflight.look(str(tmp_path / "run"), [synthetic_dataset.location])
    assert report.problems == []
    assert report.versions["torch"] != "missing"
    assert report.free_bytes is not None and report.free_bytes > 0
    preflight.judge(report, [report], needed_bytes=1)
    assert list((tmp_path / "run").iterdir()) == []
    assert preflight.look("memory://preflight/run", []).free_bytes is None


def test_storage_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = preflight.look(str(tmp_path / "file/run"), [str(tmp_path / "nothing")])
    assert len(report.problems) == 2
    with pytest.raises(InputError, match=r"on \S+: \S+file/run cannot be written .*; it must be on storage"):
        preflight.judge(report, [], needed_bytes=1)
    fine = preflight.look(str(tmp_path / "run"), [])
    elsewhere = dataclasses.replace(report, host="node-2", problems=report.problems[1:])
    with pytest.raises(InputError, match=r"on node-2: the dataset \S+nothing cannot be read"):
        preflight.judge(fine, [fine, elsewhere], needed_bytes=1)


def test_a_full_disk_is_told_with_the_numbers(tmp_path: Path) -> None:
    report = dataclasses.replace(preflight.look(str(tmp_path / "run"), []), free_bytes=2_000_000_000)
    needed = preflight.needed_bytes(600_000_000, keep=3)
    with pytest.raises(InputError, match=r"has 2 GB free and checkpoints take 2.4 GB; .*lower checkpoint.keep"):
        preflight.judge(report, [], needed)
    preflight.judge(report, [], preflight.needed_bytes(600_000_000, keep=2))


def test_versions_that_differ_are_named_with_both(tmp_path: Path) -> None:
    here = preflight.look(str(tmp_path / "run"), [])
    other = dataclasses.replace(here, host="node-2", versions={**here.versions, "torch": "2.11.0"})
    with pytest.raises(InputError, match=rf"on node-2: torch is 2.11.0 and {here.versions['torch']} on"):
        preflight.judge(here, [here, other], needed_bytes=1)


def test_looking_needs_no_ray_and_no_torch() -> None:
    script = "import sys, clusters.preflight; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
