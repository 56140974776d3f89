"""Storage that fails for a moment: what may pass, and the calls that are tried again."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

RETRY_AFTER_S = (1.0, 4.0, 16.0)
PASSING = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EPIPE, errno.EREMOTEIO, errno.ETIMEDOUT,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN,
}  # fmt: skip
"""What storage behind a network gives while it is busy or out of reach. That it is full, or forbidden, stays so."""

T = TypeVar("T")


def may_pass(error: OSError) -> bool:
    """Whether it may be over when the call is made again."""
    return error.errno in PASSING or isinstance(error, (ConnectionError, TimeoutError))


def retried(call: Callable[[], T], place: str, done: str = "written") -> T:
    """What a call returns, tried again after growing waits where it fails in a way that may pass, and this is said.

    `done`: what the call does to that place. Any other error, and the last one, is raised as it is.
    """
    for failures, wait_s in enumerate(RETRY_AFTER_S):
        try:
            return call()
        except OSError as error:
            if not may_pass(error):
                raise
            if failures == 0:
                from clusters import tracking  # which itself writes through this module

                told = error.strerror or str(error) or type(error).__name__
                tracking.say(f"{place} could not be {done} ({told}); trying again")
            time.sleep(wait_s)
    return call()
