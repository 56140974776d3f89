"""Runs that are killed just after they have saved a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clusters.checkpoint import Checkpoints


@contextmanager
def killed_after_saves(monkeypatch: pytest.MonkeyPatch, *saves: int) -> Iterator[None]:
    """Within, KeyboardInterrupt ends whatever run comes to these saves, counted from 1 over all runs."""
    save, count = Checkpoints.save, 0

    def save_and_die(self: Checkpoints, step: int, state: Any, *scores: Any) -> None:
        nonlocal count
        save(self, step, state, *scores)
        count += 1
        if count in saves:
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        yield
