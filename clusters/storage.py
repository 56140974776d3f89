"""A folder that may be a local path or any fsspec URL, with writes that are whole or not there."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from clusters.config import InputError


class Folder:
    """One folder, local or remote. Names are relative to it and use `/`.

    A local write goes to a temporary name, is flushed to disk and renamed, so that a reader sees the
    old bytes or the new ones. Object stores make a whole object visible at once by themselves.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location).rstrip("/") or "/"
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.location)
        except (ValueError, ImportError) as error:
            raise InputError(f"{self.location}: not a place that can be opened ({error})") from None
        self.path: Path | None = Path(self._root) if self._fs.protocol in ("file", ("file", "local")) else None

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.location}/{name}")

    def __repr__(self) -> str:
        return self.location

    def file(self, name: str) -> str:
        """The location of a file in this folder, for messages."""
        return f"{self.location}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or a file or folder in it, is there."""
        return bool(self._fs.exists(self._full(name)))

    def size(self, name: str) -> int:
        """Size of a file in bytes. Raises FileNotFoundError."""
        return int(self._fs.size(self._full(name)))

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty where the folder is not there."""
        self._fs.invalidate_cache(self._root)
        if not self._fs.exists(self._root):
            return []
        listed = self._fs.ls(self._root, detail=False)
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in listed})

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading bytes."""
        return cast(BinaryIO, self._fs.open(self._full(name), "rb"))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        if self.path is not None:
            return (self.path / name).read_bytes()
        return cast(bytes, self._fs.cat_file(self._full(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on."""
        return cast(bytes, self._fs.cat_file(self._full(name), start=offset, end=offset + size))

    def read_json(self, name: str) -> Any:
        """A JSON file's content. Raises FileNotFoundError or json.JSONDecodeError."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: after a crash it holds the old bytes or the new ones, never a part."""
        if self.path is None:
            self._fs.pipe_file(self._full(name), content)
            return
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as readable JSON."""
        self.write(name, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())

    def append(self, name: str, line: str) -> None:
        """Append one line to a small text file (object stores rewrite it)."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            before = self.read(name) if self.exists(name) else b""
            self.write(name, before + line.encode() + b"\n")

    def move(self, name: str, new_name: str) -> None:
        """Rename a file or folder inside this folder, replacing nothing."""
        if self.path is not None:
            (self.path / name).rename(self.path / new_name)
        else:
            self._fs.mv(self._full(name), self._full(new_name), recursive=True)

    def remove(self, name: str = "") -> None:
        """Remove a file or a whole folder; nothing happens where it is not there."""
        if self.path is not None:
            target = self.path / name if name else self.path
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        elif self._fs.exists(self._full(name)):
            self._fs.rm(self._full(name), recursive=True)

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
