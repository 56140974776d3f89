"""The forms of `ray job submit` beside that of the README, each on a cluster that `clusters/local.sh` brings up.

Slow: `make test-faults`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from data.dataset import Dataset
from tests.test_clusters_launch import BIN, ROOT, command, fingerprint, free_ports, undisturbed
from tests.test_clusters_upload import copy_of_the_checkout

__all__ = ["undisturbed"]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
UV = ["uv", "run", "--no-project", "--with-requirements", "requirements.lock"]


@contextmanager
def cluster(bin_folder: Path, **told: str) -> Iterator[dict[str, str]]:
    """A head and two workers of the environment that this folder is of; yields what a job is submitted with."""
    state = Path(tempfile.mkdtemp(prefix="manyview-", dir="/tmp"))  # short: Ray's sockets lie below it
    port, dashboard_port = free_ports(2)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MANYVIEW_LOCAL": str(state),
        "MANYVIEW_PORT": str(port),
        "MANYVIEW_DASHBOARD_PORT": str(dashboard_port),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(state / "token"),
        **told,
    }
    script, run = str(ROOT / "clusters/local.sh"), subprocess.run
    try:
        run([script, "up"], env=environment, check=True)
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
    finally:
        run([script, "down"], env=environment, check=True)
        shutil.rmtree(state)


def submitted(words: list[str], environment: dict[str, str], folder: Path) -> tuple[str, set[str]]:
    """What a job prints that is submitted from a folder and must succeed; the programs that its workers are run by."""
    programs: set[str] = set()
    with tempfile.TemporaryFile("w+") as output:
        line = ["ray", "job", "submit", *words]
        job = subprocess.Popen(line, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while job.poll() is None:
            programs |= {program for program in map(program_of_worker, psutil.process_iter()) if program}
            time.sleep(1)
        output.seek(0)
        said = output.read()
    assert job.returncode == 0, said[-5000:]
    return said, programs


def program_of_worker(process: psutil.Process) -> str | None:
    """What started a process that runs Ray's worker script; None of others."""
    with suppress(psutil.Error):
        words = process.cmdline()
        if any(word.endswith("default_worker.py") for word in words):
            return words[0]
    return None


def installed(folder: Path) -> Path:
    """The `bin` of an environment with this project's wheel in it, and of all else what this one has."""
    checkout, wheels, made = copy_of_the_checkout(folder / "checkout"), folder / "wheels", folder / "venv"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=checkout, check=True)
    (wheel,) = wheels.glob("manyview-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    python = made / "bin/python"
    install = [str(BIN / "uv"), "pip", "install", "--offline", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True)
    (site,) = made.glob("lib/python*/site-packages")
    (libraries,) = BIN.parent.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{libraries}\n")
    (made / "bin/ray").write_text(f"#!{python}\nfrom ray.scripts.scripts import main\nmain()\n")
    (made / "bin/ray").chmod(0o755)
    return made / "bin"


def test_where_the_project_is_installed_nothing_is_uploaded(
    synthetic_dataset: Dataset, undisturbed: str, tmp_path: Path
) -> None:
    words = command(synthetic_dataset, tmp_path)
    bin_folder = installed(tmp_path / "installed")
    where = [str(bin_folder / "python"), "-c", "import pretrain; print(pretrain.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(bin_folder.parent)
    with cluster(bin_folder) as environment:
        said, programs = submitted(["--", "python", *words], environment, tmp_path)
    assert str(bin_folder / "python") in programs
    assert "2-micle  step 4/4" in said
    assert fingerprint(tmp_path / "run") == undisturbed


def test_uv_makes_the_environment_of_driver_and_workers(
    synthetic_dataset: Dataset, undisturbed: str, tmp_path: Path
) -> None:
    """As a cluster has it whose nodes have uv: here its index is the cache that this environment was made from."""
    dry = [str(BIN / "uv"), "pip", "sync", "--dry-run", "--offline", "--target", str(tmp_path / "none")]
    if subprocess.run([*dry, "requirements.lock"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("uv's cache has not all that requirements.lock names")
    words = command(synthetic_dataset, tmp_path)
    with cluster(BIN, UV_OFFLINE="1") as environment:
        checkout = copy_of_the_checkout(tmp_path / "checkout")
        said, programs = submitted(["--working-dir", ".", "--", *UV, "python", *words], environment, checkout)
    assert "uv" in programs
    assert "2-micle  step 4/4" in said
    assert fingerprint(tmp_path / "run") == undisturbed
