"""However the demo on a cluster ends, what it started is gone. Ray's part is played by processes that only wait."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"start --block"*) echo "runtime started"; exec sleep 600 ;;
    *create_server*) echo "40001 40002" ;;
    *) echo "python $* address=${RAY_ADDRESS-none}" ;;
esac
"""
# Its first start is late for ever, with a process of its own; the next tells which of the two is there still.
LATE = """#!/usr/bin/env bash
if [ -e "$STARTED" ]; then
    for id in $(cat "$STARTED"); do ! readlink "/proc/$id/exe" || touch "$STARTED-still"; done
    echo "runtime started"
else
    $SLEEP 600 &
    echo $$ $! >"$STARTED"
fi
exec $SLEEP 600
"""
RAY = """#!/usr/bin/env bash
echo "ray $* mode=$RAY_AUTH_MODE token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")"
echo "$MANYVIEW_LOCAL" >"$SEEN"
case "$*" in *"$FAILS"*) exit 7 ;; *"$HANGS"*) sleep 600 ;; esac
"""


def start(folder: Path, fails: str = "nothing", hangs: str = "nothing") -> subprocess.Popen:
    for name, text in (("python", PYTHON), ("ray", RAY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    told = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "SEEN": str(folder / "seen")}
    return subprocess.Popen(
        ["clusters/demo.sh", str(folder / "runs"), "stages.0.epochs=1"],
        cwd=ROOT,
        env={**told, "FAILS": fails, "HANGS": hangs, "RAY_ADDRESS": "10.0.0.9:6379"},  # another cluster's
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # as a terminal's foreground job, which Ctrl-C reaches as a whole
    )


def still_there(folder: Path) -> list[str]:
    """Processes that bear the mark of the cluster that this demo brought up."""
    mark = f"MANYVIEW_LOCAL_CLUSTER={(folder / 'seen').read_text().strip()}\0".encode()
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if mark in environ(path)]


def environ(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_it_submits_both_jobs_with_a_token_and_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    (imported,) = [line for line in said.splitlines() if line.startswith("python -m data import")]
    assert imported.endswith("address=none")
    jobs = [line for line in said.splitlines() if line.startswith("ray job submit")]
    pretrain, finetune = jobs
    assert "-m pretrain pretrain/recipes/synthetic.yaml" in pretrain and "stages.0.epochs=1" in pretrain
    assert f"encoder={tmp_path}/runs/pretrain" in finetune
    assert all(job.endswith("mode=token token=600") for job in jobs)
    assert still_there(tmp_path) == []
    assert not Path((tmp_path / "seen").read_text().strip()).exists()


def test_a_job_that_fails_ends_it_with_the_job_s_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, fails="-m pretrain")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 7
    assert "-m finetune" not in said
    assert "all processes of this cluster are gone" in said
    assert still_there(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_takes_the_cluster_down(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, hangs="-m pretrain")
    deadline = time.monotonic() + 120
    while not (tmp_path / "seen").exists() or not (tmp_path / "seen").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(still_there(tmp_path)) >= 3  # a head and two workers
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    assert still_there(tmp_path) == []


def test_a_node_that_is_late_is_gone_before_it_is_started_anew(tmp_path: Path) -> None:
    hurried = f"#!/bin/sh\nexec {shutil.which('sleep')} 0.01\n"  # two minutes are over within seconds
    for name, text in (("python", LATE), ("sleep", hurried)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    told = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "MANYVIEW_LOCAL": str(tmp_path / "state")}
    told |= {"MANYVIEW_WORKERS": "0", "STARTED": str(tmp_path / "started"), "SLEEP": str(shutil.which("sleep"))}
    try:
        up = subprocess.run(["clusters/local.sh", "up"], cwd=ROOT, env=told, capture_output=True, text=True)
    finally:
        subprocess.run(["clusters/local.sh", "down"], cwd=ROOT, env=told, check=True)
    assert up.returncode == 0, up.stderr
    assert not (tmp_path / "started-still").exists()
    assert up.stderr.startswith("the head did not start (attempt 1 of 3)") and len(up.stderr.splitlines()) == 1
