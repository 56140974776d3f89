"""A folder whose calls fail, block, lie or kill when a test says so. It is real storage otherwise."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from clusters.storage import Folder


class Script:
    """What happens at the writing calls of the folders that follow it: `at(n)` acts at the n-th, from 1 on."""

    def __init__(self) -> None:
        self.calls = self.fired = 0
        self._act: Callable[[], object] | None = None
        self._when: Callable[[int], bool] = lambda _: False

    def at(self, when: int | Callable[[int], bool], act: Callable[[], object]) -> None:
        """From the next call on, counted from 1, act at one or at each that `when` says."""
        self.calls = self.fired = 0
        self._when = when if callable(when) else lambda call: call == when
        self._act = act

    def call(self) -> None:
        self.calls += 1
        if self._act is not None and self._when(self.calls):
            self.fired += 1
            self._act()


def fails(number: int = errno.ENOSPC) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


class FaultyFolder(Folder):
    """A folder that asks a script before each call that writes, ends, sends, lengthens or removes a file."""

    def __init__(self, location: str, script: Script) -> None:
        super().__init__(location)
        self._script = script

    def __truediv__(self, name: str) -> "FaultyFolder":
        return FaultyFolder(f"{self.location}/{name}", self._script)

    def _write(self, name: str, content: bytes) -> None:
        if self.path is None:
            self._script.call()
        super()._write(name, content)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        self._script.call()
        with super().create(name) as file:
            yield cast(BinaryIO, _FaultyFile(file, self._script))
            self._script.call()

    def append(self, name: str, line: str) -> None:
        self._script.call()
        super().append(name, line)

    def remove(self, name: str = "") -> None:
        self._script.call()
        super().remove(name)


class UnreliableFolder(Folder):
    """A folder that asks a script before each call that reads or looks; what a whole read gives it may `alter`."""

    def __init__(self, location: str, script: Script, alter: Callable[[bytes], bytes] = bytes) -> None:
        super().__init__(location)
        self._script, self._alter = script, alter

    def __truediv__(self, name: str) -> "UnreliableFolder":
        return UnreliableFolder(f"{self.location}/{name}", self._script, self._alter)

    def _exists(self, name: str) -> bool:
        self._script.call()
        return super()._exists(name)

    def _size(self, name: str) -> int:
        self._script.call()
        return super()._size(name)

    def _names(self) -> list[str]:
        self._script.call()
        return super()._names()

    def _open(self, name: str) -> BinaryIO:
        self._script.call()
        return super()._open(name)

    def _read(self, name: str) -> bytes:
        self._script.call()
        return self._alter(super()._read(name))


class _FaultyFile:
    """Writes half of a piece before its script acts."""

    def __init__(self, file: BinaryIO, script: Script) -> None:
        self._file, self._script = file, script

    def write(self, piece: Any) -> None:
        half = len(piece) // 2
        self._file.write(piece[:half])
        self._script.call()
        self._file.write(piece[half:])
