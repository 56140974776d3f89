"""Lines appended to a file in a thread, so that a training does not wait for its storage."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from clusters.storage import Folder

EVERY_S, BYTES_PER_S = 5.0, 200_000
"""Between writes to a URL, each of which reads and writes the whole file: a long one less often, so for equal bytes."""
FLUSH_S = 30.0
"""How long `flush` waits for storage that has stalled."""
MOST_LINES = 10_000
"""That wait for their writing; further ones are lost."""


class LineWriter:
    """Appends to one file, in order. What a full disk refuses is tried again together with the next line.

    A kill loses what was added since the last write to a URL, of a local file next to nothing. `say` tells a person
    what goes wrong. Lines that are not `permitted` when their turn comes are dropped.
    """

    def __init__(
        self, folder: Folder, name: str, say: Callable[[str], None], permitted: Callable[[], bool] = lambda: True
    ) -> None:
        self._folder, self._name, self._say, self._permitted = folder, name, say, permitted
        self._lines: deque[str] = deque()
        self._lock, self._hurry = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._refused = self._lost = False

    def add(self, line: str) -> None:
        """Append a line soon; returns at once."""
        with self._lock:
            if len(self._lines) < MOST_LINES:
                self._lines.append(line)
            elif not self._lost:
                self._lost = True
                self._say(f"{self._place}: {MOST_LINES} lines wait for its storage; further ones are lost")
            self._start()

    def flush(self) -> None:
        """Return once what was added is written, or was refused, or storage has not answered for FLUSH_S."""
        with self._lock:
            self._start()
            thread = self._thread
            if thread is not None:
                self._hurry.set()
        if thread is not None:
            thread.join(FLUSH_S)
            if thread.is_alive():
                self._say(f"{self._place} is still being written after {FLUSH_S:g} s; nobody waits for it any more")

    @property
    def _place(self) -> str:
        return self._folder.file(self._name)

    def _start(self) -> None:
        if self._thread is None and self._lines:
            # A daemon: where storage never answers, Python must still be able to end
            self._thread = threading.Thread(target=self._write_all, name=self._name, daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        lines, written = [], True
        while True:
            if self._folder.path is None and not self._hurry.is_set():
                self._hurry.wait(self._between())
            with self._lock:
                for _ in lines if written else ():
                    self._lines.popleft()
                lines = list(self._lines)
                if not (lines and written):
                    self._thread = None
                    self._hurry.clear()
                    return
            written = not self._permitted() or self._write(lines)

    def _between(self) -> float:
        with suppress(OSError):  # it is not there yet
            return max(EVERY_S, self._folder.size(self._name) / BYTES_PER_S)
        return EVERY_S

    def _write(self, lines: list[str]) -> bool:
        torn = self._refused  # perhaps; readers leave out a line that is
        try:
            self._folder.append(self._name, "\n" * torn + "\n".join(lines))
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._say(f"{self._place} could not be written ({error.strerror or error}); it is tried again")
            self._refused = True
        return not self._refused
