"""What clusters/slurm.sh passes on when its time is nearly over, with stand-ins for Slurm and Ray."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_the_batch_script_tells_the_driver_alone_and_ends_as_it_does(tmp_path: Path) -> None:
    token, bin_folder = tmp_path / "token", tmp_path / ".venv/bin"
    token.touch(0o600)
    bin_folder.mkdir(parents=True)
    (tmp_path / "driver.py").write_text(DRIVER)
    programs = {
        "srun": RUN_THE_REST,
        "scontrol": "#!/bin/bash\necho node1\nsleep 0.2\necho node2\n",  # a reader of one line is gone by then
        "python": f'#!/bin/bash\nexec {sys.executable} driver.py "$@"\n',
    }
    for name, text in programs.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    slurm = {"JOB_NODELIST": "node[1-2]", "JOB_ID": "7", "GPUS_ON_NODE": "4", "JOB_NUM_NODES": "2", "CPUS_ON_NODE": "8"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    words = ["bash", str(ROOT / "clusters/slurm.sh"), "recipe.yaml", "data=/my data"]
    script = subprocess.Popen(words, cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: (tmp_path / "started").exists() or script.poll() is not None, "the driver", 60)
        assert script.poll() is None
        script.send_signal(signal.SIGTERM)
        assert script.wait(30) == 143
    finally:
        script.kill()
    assert (tmp_path / "told").exists()
    told = (tmp_path / "started").read_text()
    assert told == "-u -m pretrain recipe.yaml data=/my data cluster.address=node1:20007 cluster.num_workers=8"
    assert not list(tmp_path.glob(".manyview-*"))
