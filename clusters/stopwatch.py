"""Where the time goes, by the clock of the device that does the work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds that go into named pieces of work, until somebody reads them.

    On a GPU the host runs ahead of the work that it hands over, so its clock would tell little. There, marks are put
    into the stream: a piece lasts from when the work before it is done until its own is done. What the host does
    meanwhile counts as far as the device waits for it. Nothing waits for the device but `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._begun: dict[str, Any] = {}
        self._pieces: dict[str, list[tuple[Any, Any]]] = {}

    def start(self, name: str) -> None:
        """A piece of work begins."""
        self._begun[name] = self._mark()

    def stop(self, name: str) -> None:
        """It has ended."""
        self._pieces.setdefault(name, []).append((self._begun.pop(name), self._mark()))

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """The block is a piece of work."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def read(self) -> dict[str, float]:
        """Seconds of each name since the last time; waits for the device."""
        pieces, self._pieces = self._pieces, {}
        if not self._on_gpu:
            return {name: sum(end - start for start, end in spans) for name, spans in pieces.items()}
        torch.cuda.synchronize()
        return {name: sum(start.elapsed_time(end) for start, end in spans) / 1000 for name, spans in pieces.items()}

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
