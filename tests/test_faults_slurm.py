"""What clusters/slurm.sh passes on when its time is nearly over, with stand-ins for Slurm and Ray."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fault_runs import ROOT, wait_for

# What stands before `--` is Slurm's and Ray's; what follows is run.
RUN_THE_REST = '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n'
DRIVER = """
import signal, sys, time
from pathlib import Path

def leave(number, frame):
    Path("told").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, leave)
Path("started").write_text(" ".join(sys.argv[1:]))
time.sleep(60)
"""


def batch(
    folder: Path, *words: str, gpus: int = 4, before_driver: str = "", told_before: str = "", room: str = ""
) -> "subprocess.Popen[str]":
    """The script on two nodes, the driver of which stands in for Manyview; told to leave before one of its commands."""
    token, bin_folder = folder / "token", folder / ".venv/bin"
    bin_folder.mkdir(parents=True)
    token.touch(0o600)
    (folder / "driver.py").write_text(DRIVER)
    programs = {
        "srun": RUN_THE_REST.replace('shift\n"$@"', f'shift\n{before_driver}\n"$@"'),
        "scontrol": "#!/bin/bash\necho node1\nsleep 0.2\necho node2\n",  # a reader of one line is gone by then
        "python": f'#!/bin/bash\nexec {sys.executable} driver.py "$@"\n',
    }
    for name, text in programs.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    slurm = {"JOB_NODELIST": "node[1-2]", "JOB_ID": "7", "JOB_NUM_NODES": "2", "CPUS_ON_NODE": "8"}
    slurm |= {"GPUS_ON_NODE": str(gpus)} if gpus else {}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "MANYVIEW_ROOM": room}
    if told_before:
        told = f"[[ $BASH_COMMAND != '{told_before}'* ]] || {{ kill -TERM $$; trap - DEBUG; }}"
        (folder / "told.sh").write_text(f"trap {shlex.quote(told)} DEBUG\n")
        environment["BASH_ENV"] = str(folder / "told.sh")
    script = ["bash", str(ROOT / "clusters/slurm.sh"), *words]
    return subprocess.Popen(script, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended(script: "subprocess.Popen[str]", seconds: float = 30) -> int:
    try:
        return script.wait(seconds)
    finally:
        script.kill()


def test_the_batch_script_tells_the_driver_alone_and_ends_as_it_does(tmp_path: Path) -> None:
    script = batch(tmp_path, "recipe.yaml", "data=/my data")
    wait_for(lambda: (tmp_path / "started").exists() or script.poll() is not None, "the driver", 60)
    assert script.poll() is None
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 143
    assert (tmp_path / "told").exists()
    told = (tmp_path / "started").read_text()
    assert told == "-u -m pretrain recipe.yaml cluster.num_workers=8 data=/my data cluster.address=node1:20007"
    assert not list(tmp_path.glob(".manyview-*"))


def test_a_job_that_was_queued_again_tells_its_own_driver_and_no_stranger(tmp_path: Path) -> None:
    """Killed with its node, the job before left its driver's number, which another process has by now."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / ".manyview-7.pid").write_text(f"{stranger.pid}\n")
        script = batch(tmp_path, "recipe.yaml", before_driver="touch begun; sleep 3")
        wait_for(lambda: (tmp_path / "begun").exists(), "srun", 60)
        script.send_signal(signal.SIGTERM)
        assert ended(script) == 143
        assert stranger.poll() is None
        assert (tmp_path / "told").exists() or not (tmp_path / "started").exists()
        stranger.kill()


def test_a_driver_that_is_not_there_yet_is_told_once_it_is(tmp_path: Path) -> None:
    script = batch(tmp_path, "recipe.yaml", before_driver="touch begun; sleep 3")
    wait_for(lambda: (tmp_path / "begun").exists(), "srun", 60)
    time.sleep(0.5)  # the script, which has just started it, waits for it by now
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 143
    assert (tmp_path / "told").exists() or not (tmp_path / "started").exists()


def test_a_ray_that_does_not_come_up_meanwhile_ends_the_script_with_its_own_code(tmp_path: Path) -> None:
    script = batch(tmp_path, "recipe.yaml", before_driver="touch begun; sleep 1; exit 7")
    wait_for(lambda: (tmp_path / "begun").exists(), "srun", 60)
    time.sleep(0.5)
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 7
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("command", ["srun --kill", "srun=$!", "[ -z ", "wait"])
def test_a_term_at_any_moment_of_the_start_leaves_no_driver_behind(tmp_path: Path, command: str) -> None:
    script = batch(tmp_path, "recipe.yaml", told_before=command)
    assert ended(script) == 143
    assert not list(tmp_path.glob(".manyview-*"))
    time.sleep(2)  # a driver that had been left behind would have started by now
    assert (tmp_path / "told").exists() or not (tmp_path / "started").exists()


def test_nodes_without_gpus_want_a_number_of_workers(tmp_path: Path) -> None:
    script = batch(tmp_path / "none", "recipe.yaml", gpus=0)
    assert ended(script) == 2
    assert script.stderr is not None
    assert script.stderr.read() == "no GPUs on these nodes; say how many workers, as cluster.num_workers=2\n"
    script = batch(tmp_path / "told", "recipe.yaml", "cluster.num_workers=6", gpus=0)
    wait_for(lambda: (tmp_path / "told/started").exists(), "the driver", 60)
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 143
    told = (tmp_path / "told/started").read_text()
    assert told == "-u -m pretrain recipe.yaml cluster.num_workers=6 cluster.address=node1:20007"


def test_fine_tuning_goes_the_same_way_and_nothing_else_does(tmp_path: Path) -> None:
    script = batch(tmp_path / "full", "recipe.yaml", "head=full", room="finetune")
    wait_for(lambda: (tmp_path / "full/started").exists(), "the driver", 60)
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 143
    told = (tmp_path / "full/started").read_text()
    assert told == "-u -m finetune recipe.yaml cluster.num_workers=8 head=full cluster.address=node1:20007"
    script = batch(tmp_path / "other", "recipe.yaml", room="http.server")
    assert ended(script) == 2
    assert script.stderr is not None
    assert script.stderr.read() == "MANYVIEW_ROOM is pretrain or finetune, not 'http.server'\n"


def test_the_user_s_number_of_workers_is_the_last_word(tmp_path: Path) -> None:
    script = batch(tmp_path, "recipe.yaml", "cluster.num_workers=[2,8]")
    wait_for(lambda: (tmp_path / "started").exists(), "the driver", 60)
    script.send_signal(signal.SIGTERM)
    assert ended(script) == 143
    words = (tmp_path / "started").read_text().split()
    assert [word for word in words if word.startswith("cluster.num")][-1] == "cluster.num_workers=[2,8]"
