"""Whom clusters/local.sh lets read its folder and its token; Ray's nodes are stand-ins that say that they run."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def local(command: str, state: Path, bin_folder: Path) -> "subprocess.CompletedProcess[str]":
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "python").write_text("#!/bin/bash\necho runtime started\n")
    (bin_folder / "python").chmod(0o755)
    told = {**os.environ, "MANYVIEW_LOCAL": str(state), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    script = [str(ROOT / "clusters/local.sh"), command]
    return subprocess.run(script, env=told, capture_output=True, text=True, timeout=60)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_and_files_of_before_are_closed_to_others(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir(mode=0o755)
    elsewhere.write_text("mine")
    state.chmod(0o777)
    for name in ("token", "head.log"):
        (state / name).write_text("of before")
        (state / name).chmod(0o666)
    (state / "ids").symlink_to(elsewhere)
    (state / "worker-1.log").symlink_to(elsewhere)
    done = local("up", state, tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert mode(state) == 0o700
    assert {path.name: mode(path) for path in state.iterdir()} == dict.fromkeys(
        ("token", "ids", "head.log", "worker-1.log", "worker-2.log"), 0o600
    )
    assert len((state / "token").read_text()) == 64
    assert elsewhere.read_text() == "mine"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("command", ["up", "down", "watch"])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, command: str, by_link: bool) -> None:
    state, folder = tmp_path / "state", tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "token").write_text("theirs")
    state.symlink_to(folder)
    os.chown(state if by_link else folder, 65534, 65534, follow_symlinks=False)
    done = local(command, state, tmp_path / "bin")
    assert done.returncode == 2
    assert done.stderr == f"{state} belongs to somebody else; set MANYVIEW_LOCAL to a folder of yours\n"
    assert (folder / "token").read_text() == "theirs"
    assert mode(folder) == 0o777
