"""The environment of a Ray that a test starts in its own process."""

import pytest

from clusters.connection import LEAN_RAY, QUIET_RAY
from clusters.tokens import prepare_token


def use_own_ray(patch: pytest.MonkeyPatch) -> None:
    """Lean, quiet, and with a token (see conftest.py).

    A process that has once used a token goes on asking for it. The control store of a later Ray without one could not
    reach it, and would take the actors that it has begun for given up.
    """
    for name, value in {**QUIET_RAY, **LEAN_RAY, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}.items():
        patch.setenv(name, value)
    prepare_token()
