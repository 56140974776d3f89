"""A folder that may be a local path or any fsspec URL, with writes that are whole or not there."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from clusters import drivers
from clusters.config import InputError
from clusters.retries import retried

BLOCK_BYTES = 1 << 22
REMOTE_BLOCK_BYTES = 1 << 24  # fewer, longer requests


class Folder:
    """One folder, local or remote. Names are relative to it and use `/`.

    A local write goes to a temporary name, is flushed to disk and renamed, so that a reader sees the
    old bytes or the new ones. Object stores make a whole object visible at once by themselves.
    Whatever goes wrong at a place raises an OSError, also where its driver has errors of another kind;
    writes of whole files and reads are `retried` first.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location).rstrip("/") or "/"
        self._fs, self._root = drivers.open_driver(self.location)
        self.path: Path | None = Path(self._root) if self._fs.protocol in ("file", ("file", "local")) else None

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.location}/{name}")

    def __repr__(self) -> str:
        return self.location

    def file(self, name: str) -> str:
        """The location of a file in this folder, for messages."""
        return f"{self.location}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or a file or folder in it, is there. Storage that is out of reach is no answer."""
        return retried(lambda: self._exists(name), self.file(name), "looked for")

    def _exists(self, name: str) -> bool:
        # Drivers, and Python itself, would say of what may not be looked at, or cannot be reached, that it is not there
        try:
            with self._told():
                self._fs.info(self._full(name)) if self.path is None else (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, name: str) -> int:
        """Size of a file in bytes. Raises FileNotFoundError."""
        return retried(lambda: self._size(name), self.file(name), "looked at")

    def _size(self, name: str) -> int:
        with self._told():
            return int(self._fs.size(self._full(name)))

    def stamp(self, name: str) -> tuple[int | None, object]:
        """Size in bytes, and what else of a file changes when it is replaced: its time or ETag, where the place tells.

        Raises FileNotFoundError.
        """
        if self.path is not None:
            told = (self.path / name).stat()
            return told.st_size, told.st_mtime_ns
        with self._told():
            info = self._fs.info(self._full(name))
        return info.get("size"), next((str(info[key]) for key in drivers.CHANGE_KEYS if info.get(key)), None)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty where the folder is not there."""
        return retried(self._names, self.location, "listed")

    def _names(self) -> list[str]:
        with self._told():
            try:
                listed = self._fs.ls(self._root, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        root = self._root.rstrip("/")
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in listed if str(entry) != root} - {""})

    def sizes(self) -> dict[str, int]:
        """Bytes of every file at any depth, by its name from here, sorted; one listing for a whole URL."""
        prefix = f"{self._root.rstrip('/')}/"
        with self._told():
            found = self._fs.find(self._root, detail=True)
            files = {str(path): entry["size"] for path, entry in found.items() if entry["type"] == "file"}
            # A web server's listing has no sizes.
            sizes = {path: self._fs.size(path) if size is None else size for path, size in files.items()}
        return dict(sorted((path.removeprefix(prefix), int(size or 0)) for path, size in sizes.items()))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading bytes. Raises FileNotFoundError."""
        return retried(lambda: self._open(name), self.file(name), "opened")

    def _open(self, name: str) -> BinaryIO:
        if self.path is not None:
            return (self.path / name).open("rb")
        with self._told():
            return cast(BinaryIO, self._fs.open(self._full(name), "rb", block_size=REMOTE_BLOCK_BYTES))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return retried(lambda: self._read(name), self.file(name), "read")

    def _read(self, name: str) -> bytes:
        if self.path is not None:
            return (self.path / name).read_bytes()
        with self._told():
            return cast(bytes, self._fs.cat_file(self._full(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on, fewer where it ends before. Raises FileNotFoundError."""
        if self.path is not None:
            with (self.path / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        with self._told():
            return cast(bytes, self._fs.cat_file(self._full(name), start=offset, end=offset + size))

    def download(self, name: str, target: Path) -> None:
        """Copy a file to a local path, piece by piece. Raises FileNotFoundError."""
        with self._told():
            self._fs.get_file(self._full(name), str(target))

    def sha256(self, name: str) -> str:
        """SHA-256 of a file, read piece by piece. Raises FileNotFoundError."""
        return retried(lambda: self._sha256(name), self.file(name), "read")

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._open(name) as file, self._told():
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """A JSON file's content. Raises FileNotFoundError, and InputError where it is none."""
        try:
            return json.loads(self.read(name))
        except InputError:
            raise
        except ValueError:
            raise InputError(f"{self.file(name)}: damaged, for it holds no JSON; restore it from a backup") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: after a crash it holds the old bytes or the new ones, never a part. `retried`."""
        retried(lambda: self._write(name, content), self.file(name))

    def _write(self, name: str, content: bytes) -> None:
        if self.path is None:
            with self._told():
                self._fs.pipe_file(self._full(name), content)
            return
        with self.create(name) as file:
            file.write(content)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Write a file piece by piece: it is there, whole, once the block has ended, and not if the block raises.

        The pieces for a URL are collected in the machine's temporary folder.
        """
        if self.path is None:
            with tempfile.NamedTemporaryFile(prefix="manyview-") as file:
                with _naming(f"{tempfile.gettempdir()} (to be sent to {self.file(name)})"):
                    yield cast(BinaryIO, file)
                    file.flush()
                with self._told():
                    self._fs.put_file(file.name, self._full(name))
            return
        target = self.path / name
        is_new = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with _naming(str(target)), temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _keep_names(target.parent)
            if is_new:
                _keep_names(target.parent.parent)
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
            with self._told():
                drivers.move(self._fs, self._full(name), self._full(new_name))

    def remove(self, name: str = "") -> None:
        """Remove a file or a whole folder; nothing happens where it is not there."""
        if self.path is not None:
            target = self.path / name if name else self.path
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        elif self.exists(name):
            with self._told():
                self._fs.rm(self._full(name), recursive=True)

    def for_ray(self) -> dict[str, Any]:
        """How a RunConfig of Ray is told of this folder.

        By our driver: Arrow's, which Ray would take, knows fewer places, and keys and endpoints from elsewhere.
        """
        if self.path is not None:
            return {"storage_path": self.location}
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return {"storage_path": self._root, "storage_filesystem": PyFileSystem(FSSpecHandler(self._fs))}

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _told(self) -> AbstractContextManager[None]:
        return nullcontext() if self.path is not None else drivers.told(self.location)


def _keep_names(folder: Path) -> None:
    """Have what a folder lists outlive a loss of power; not every file system can be asked."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """A failed write (disk full) does not say by itself which file it was about."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, place) from error
