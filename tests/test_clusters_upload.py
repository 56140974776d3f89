"""What `ray job submit --working-dir .` sends: this checkout without what is ignored, and little of it."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[1]
MAX_BYTES = 5_000_000


def sent(folder: Path, at: Path) -> dict[str, int]:
    """The files that Ray packs for a job from a folder, by its own rules, with their sizes."""
    create_package(str(folder), at, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(at) as package:
        return {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}


def copy_of_the_checkout(to: Path) -> Path:
    """The tracked files alone: what else lies in a working copy is its owner's affair."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((ROOT / name).read_bytes())
    return to


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_of_the_checkout(tmp_path / "checkout")


def test_the_upload_is_small_and_holds_all_that_a_job_runs(checkout: Path, tmp_path: Path) -> None:
    files = sent(checkout, tmp_path / "package.zip")
    assert {"pretrain/__main__.py", "data/dataset.py", "pretrain/recipes/ham10000.yaml"} <= set(files)
    assert (tmp_path / "package.zip").stat().st_size < MAX_BYTES


def test_what_is_ignored_stays_here(checkout: Path, tmp_path: Path) -> None:
    before = sent(checkout, tmp_path / "before.zip")
    for name in (
        "runs/demo/data/shard.tar",
        ".venv/lib/torch.so",
        ".git/objects/pack",
        ".cache/x",
        "data/__pycache__/x.pyc",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"x" * 1000)
    assert sent(checkout, tmp_path / "after.zip") == before
    (checkout / "data/more.py").write_bytes(b"x")  # `data/` is a room, and no pattern that hides it
    assert set(sent(checkout, tmp_path / "more.zip")) - set(before) == {"data/more.py"}
