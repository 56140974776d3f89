"""How far a long import or check is: one line every few seconds on stderr, with the time that is left."""

import sys
import threading
import time


class Progress:
    """Counts up to a total. On a terminal the line is rewritten; elsewhere each line stands. Threads may share it."""

    def __init__(self, title: str, total: float, unit: str, quiet: bool = False, interval_s: float = 5.0) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.in_place = sys.stderr.isatty()
        self.interval_s = min(interval_s, 0.5) if self.in_place else interval_s
        self.count = self.skipped = 0.0
        self.begun = self.told = time.monotonic()
        self._lock = threading.Lock()

    def skip(self, number: float) -> None:
        """Count what an earlier run has done: it says nothing about the speed of this one."""
        self.skipped = self.count = number

    def advance(self, number: float) -> None:
        """Count `number` more, and print a line if it is time for one."""
        now = time.monotonic()
        with self._lock:
            if self.count == self.skipped:  # the clock of the estimate starts when work begins to arrive
                self.begun = self.told = now
            self.count += number
            if not self.quiet and now - self.told >= self.interval_s:
                self.told = now
                done = max(1.0, self.count - self.skipped)
                left_s = (now - self.begun) / done * max(0.0, self.total - self.count)
                self._print(f"{self.title}: {self.count:,.0f} of {self.total:,.0f} {self.unit}, {_clock(left_s)} left")

    def close(self) -> None:
        """Print the last line."""
        if not self.quiet:
            spent_s = time.monotonic() - self.begun
            kept = f" ({self.skipped:,.0f} kept from before)" if self.skipped else ""
            self._print(f"{self.title}: {self.count:,.0f} {self.unit} in {spent_s:.1f} s{kept}")
            if self.in_place:
                print(file=sys.stderr)

    def _print(self, line: str) -> None:
        if self.in_place:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
