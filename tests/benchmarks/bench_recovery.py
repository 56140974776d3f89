"""Recovery from a killed worker against a cold start of the same job, two Ray workers.

The cold start is a person's: from the command to the first step. Recovery is from the kill to the next step.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.soak import ROOT, Run

NUM_KILLS = 3


def run() -> list[dict[str, Any]]:
    """The median of a few kills; each time both workers are there and stepping."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make = ["-m", "data", "import", "source=synthetic", f"out={data}", "num_cases=200"]
        subprocess.run([sys.executable, *make], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        began = time.time()
        job = Run(Path(folder) / "job", data)
        cold_s = job.wait_for_step(1) - began
        recoveries = []
        for _ in range(NUM_KILLS):
            time.sleep(5)  # a checkpoint lies there, and steps are taken
            recoveries.append(job.kill(random.Random(0), "worker")[1])
        job.end()
    recovery_s = sorted(recoveries)[NUM_KILLS // 2]
    return [
        {
            "name": "recovery after SIGKILL of a worker, two Ray workers; peer a cold start of the job",
            "ours": round(recovery_s, 1),
            "peer": round(cold_s, 1),
            "unit": "s",
            "ratio": round(cold_s / recovery_s, 2),
            "floor": round(1 / 1.5, 2),
            "goal": 1.0,
        }
    ]
