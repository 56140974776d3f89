"""The faults that runs are given under Ray are what they are called; the runs themselves are test_faults_ray's."""

import faulthandler
import multiprocessing
import signal
from pathlib import Path

import pytest

from tests.fault_runs import Faults


def meet(run: str) -> None:
    faulthandler.disable()  # it would print where the signal came, which is no news
    Faults(run).meet(3, 1, "step")


@pytest.mark.parametrize("how", ["removed", "damaged"])
@pytest.mark.parametrize(("kind", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGSEGV", -signal.SIGSEGV), ("exit", 0)])
def test_a_fault_spoils_ray_s_folder_and_ends_the_process(kind: str, code: int, how: str, tmp_path: Path) -> None:
    run, kept = tmp_path / "run", tmp_path / "run/.ray/launch-1/snapshot.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    faults = Faults(str(run))
    faults.plan([{"kind": kind, "rank": 1, "step": 3, "ray_folder": how}])
    process = multiprocessing.get_context("fork").Process(target=meet, args=(str(run),))
    process.start()
    process.join(30)
    assert process.exitcode == code and faults.fired() != [None]
    assert not (run / ".ray").exists() if how == "removed" else kept.read_bytes() == b"\0"


def test_a_fault_that_finds_nothing_to_spoil_has_not_fired(tmp_path: Path) -> None:
    faults = Faults(str(tmp_path / "run"))
    faults.plan([{"kind": "exit", "rank": 1, "step": 3, "ray_folder": "removed"}])
    with pytest.raises(AssertionError, match="Ray keeps nothing there"):
        faults.meet(3, 1, "step")
    assert faults.fired() == [None]
