"""A Ray that was started here is its user's alone, and gone when it is left, whatever its processes are at."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import connection, security
from clusters.connection import connect, disconnect
from clusters.workers import ClusterConfig
from tests.rays import use_own_ray

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(300)
def test_a_worker_that_cannot_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that Ray has let go, as it does when a process begins to end, and that stays."""
    stays = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'ray::Stays'); print(flush=True); time.sleep(600)"
    use_own_ray(monkeypatch)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "ENDS_S", 2.0)
    import ray

    connect(ClusterConfig(num_workers=1, address="local"), follow_log=True)
    # Ray opens what it is given to everybody; what that lies in stays closed
    ours = Path(security.session_folder() or "").parent
    session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]
    assert session.is_relative_to(ours) and list((session / "sockets").iterdir())
    assert ours.stat().st_mode & 0o777 == 0o700
    with subprocess.Popen([sys.executable, "-c", stays], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None and worker.stdout.readline()
            assert ray.get(ray.remote(lambda: os.getppid()).remote()) != os.getpid()
            disconnect(local=True)
            assert worker.wait(10) == -signal.SIGKILL
        finally:
            worker.kill()
    assert not ray.is_initialized()


def test_ray_s_controller_ends_with_python() -> None:
    """Nothing of C++ has a say after that: it could wait for itself."""
    script = """
import atexit, os
from ray import cloudpickle
from ray.train import FailureConfig
from clusters import leaving
from clusters.storage import Folder
atexit.register(print, "an end of C++", flush=True)
policy = leaving.failure_policy(Folder("memory://run"), "launch-1", FailureConfig())
sent = cloudpickle.dumps(policy)
if os.fork() == 0:
    print(type(cloudpickle.loads(sent)).__name__, flush=True)
else:
    print(os.wait()[1], flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split("\n") == ["Policy", "0", "an end of C++", ""], ended.stderr
