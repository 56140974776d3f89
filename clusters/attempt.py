"""How often a stage was started, in its attempt.json: the newest start alone may write there.

A stalled worker that wakes beside its replacement finds a number that is not its own, and stops.
"""

import os
import uuid
from collections.abc import Callable

from clusters import checkpoint_files, tracking
from clusters.config import InputError
from clusters.lease import check_held
from clusters.storage import Folder

ATTEMPT = "attempt.json"


class Superseded(InputError):
    """A newer start of the same run has taken over; this one must not write any more."""


class Replaced(Superseded):
    """It is one of the same launch: Ray has started other workers in the place of these, and the run goes on."""


class Attempt:
    """One start of a stage, whose checkpoints are at `checkpoints`.

    Made on every rank; `on_main` lets rank 0 write it down and tells the others what it wrote.
    """

    def __init__(
        self,
        folder: Folder,
        checkpoints: Folder,
        on_main: Callable[[Callable[[], tuple[int, str]]], tuple[int, str]],
    ) -> None:
        self._folder, self._checkpoints = folder, checkpoints
        self.number, self._token = on_main(self._begin)

    def _begin(self) -> tuple[int, str]:
        check_held()
        self.number = 1 + (self._read()[0] if self._folder.exists(ATTEMPT) else self._of_names())
        self._token = uuid.uuid4().hex  # two that start at once where there is no lock may read the same number
        self._write()
        return self.number, self._token

    def check(self) -> None:
        """Raises Superseded where a later start of this run has written itself down."""
        newest, token, launch = self._read()
        if token is None and newest <= self.number:
            self._write()  # damaged while this one is at work
        elif (newest, token) != (self.number, self._token):
            raise (Replaced if launch == _launch() is not None else Superseded)(
                f"{self._folder.location}: attempt {newest} of this run has taken over from attempt "
                f"{self.number}{' of the same moment' * (newest == self.number)}; leave the run to it"
            )

    def is_newest(self) -> bool:
        """Whether no later start is known; also where storage does not say."""
        try:
            self.check()
        except Superseded:
            return False
        except OSError:
            return True
        return True

    def _write(self) -> None:
        self._folder.write_json(ATTEMPT, {"attempt": self.number, "token": self._token, "launch": _launch()})

    def _read(self) -> tuple[int, str | None, str | None]:
        """Number, token and launch of the newest start as written down or, if damaged, as checkpoints tell the first.

        Raises FileNotFoundError.
        """
        try:
            found = self._folder.read_json(ATTEMPT)
            return int(found["attempt"]), found.get("token"), found.get("launch")
        except (ValueError, KeyError, TypeError, AttributeError):
            tracking.say(f"{self._folder.file(ATTEMPT)} is damaged; written anew, from the names of the checkpoints")
            return self._of_names(), None, None

    def _of_names(self) -> int:
        """The newest start of which a checkpoint tells by its name, also by that under which it was set aside."""
        return max(map(checkpoint_files.attempt_of, self._checkpoints.names()), default=0)


def _launch() -> str | None:
    """The launch that this is a Ray worker of; none elsewhere."""
    return os.environ.get("MANYVIEW_RAY_WORKER")
