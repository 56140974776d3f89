"""The files of one checkpoint: written so that it is whole or not there, and verified by hash.

    step-000001200/state.safetensors   every tensor of the state
                   state.json          the rest of it: numbers, names, structure
                   MANIFEST.json       format, sizes and SHA-256, its own too; written last, it is the commit

Nothing in it depends on the number of workers, the device or torch's version, and nothing is pickled.
"""

import errno
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from clusters.config import InputError
from clusters.retries import retried
from clusters.snapshot import Copy, attach
from clusters.storage import Folder

CHECKPOINTS, SAVED = "checkpoints", "saved.json"
MANIFEST = "MANIFEST.json"
TENSORS = "state.safetensors"
STRUCTURE = "state.json"
FORMAT, FORMATS = 2, (1, 2)
"""Of the layout, written and read. The first has no hash of its MANIFEST, which may tell no format either."""


class Name(NamedTuple):
    """A checkpoint's name, in order of age: `step-000001200`, or `step-000001200-attempt-2` of a second start.

    Each start writes under names of its own: one that had stalled and wakes cannot touch what another has written.
    """

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:09d}" + (f"-attempt-{self.attempt}" if self.attempt > 1 else "")


def parse_name(text: str) -> Name | None:
    """The step and attempt of a name; None where it is not that of a checkpoint."""
    found = re.fullmatch(r"step-(\d+)(?:-attempt-(\d+))?", text)
    return Name(int(found[1]), int(found[2] or 1)) if found else None


def attempt_of(text: str) -> int:
    """The latest start that the name of a checkpoint tells, of one that was set aside too; 0 where it is neither."""
    found = re.fullmatch(r"(damaged-)?(step-\d+)(-attempt-\d+)*(-again)*", text)
    return max([1, *map(int, re.findall(r"attempt-(\d+)", text))]) if found else 0


def names(folder: Folder, committed: bool = True) -> list[Name]:
    """The checkpoints in a folder that have their commit, or those that have none; the oldest first.

    By name, since clocks and file times may lie.
    """
    found = [name for name in map(parse_name, folder.names()) if name is not None]
    return sorted(name for name in found if folder.exists(f"{name}/{MANIFEST}") == committed)


def without_commit(folder: Folder) -> str | None:
    """What is wrong where several checkpoints are whole but for their MANIFEST, and none has it.

    Each start can have been cut off in one save; of more than that, somebody's copy has left it out.
    """
    if names(folder):
        return None
    whole = [one for one in names(folder, committed=False) if {TENSORS, STRUCTURE} <= set((folder / str(one)).names())]
    if len(whole) == len({one.attempt for one in whole}):
        return None
    return (
        f"{folder}: {len(whole)} checkpoints without their {MANIFEST}, and none with it; copy the folder again, or "
        "remove it to start the stage from step 0"
    )


def gone(stage: Folder) -> str | None:
    """What is wrong where a stage has no checkpoint at all and once had: it would start from step 0 without a word."""
    if not stage.exists(SAVED) or (stage / CHECKPOINTS).names():
        return None
    return (
        f"{stage / CHECKPOINTS}: the checkpoints that were saved here are gone; restore them from a backup, or remove "
        f"{stage} to start the stage from step 0"
    )


def note_that_saved(stage: Folder) -> None:
    """Leave beside the checkpoints of a stage that there are some."""
    if not stage.exists(SAVED):
        stage.write_json(SAVED, {"checkpoints": CHECKPOINTS})


def write(folder: Folder, name: Name, copy: Copy, about: dict[str, Any], permit: Callable[[], None]) -> None:
    """Write a checkpoint into its folder; `about` goes into its MANIFEST, and `permit` may raise just before that.

    Holds no further copy of the state: it is hashed as it is written. One that is there already stays as it is.
    After an error nothing of it is left, as far as storage still does as it is told.
    """
    if folder.exists(MANIFEST):
        return
    try:
        copy.wait()
        files = {TENSORS: retried(lambda: _write_tensors(folder, copy.tensors), folder.file(TENSORS))}
        structure = json.dumps({"step": name.step, "attempt": name.attempt, "state": copy.structure}).encode()
        folder.write(STRUCTURE, structure)
        files[STRUCTURE] = {"size": len(structure), "sha256": hashlib.sha256(structure).hexdigest()}
        permit()
        manifest = {"format": FORMAT, "step": name.step, **about, "files": files}
        folder.write_json(MANIFEST, {**manifest, "sha256": _sha256_of(manifest)})
    except BaseException:
        with suppress(OSError):
            if not folder.exists(MANIFEST):
                folder.remove()
        raise


def remove(folder: Folder) -> None:
    """Remove a checkpoint, its commit first: what is left where this is cut off does not count."""
    folder.remove(MANIFEST)
    folder.remove()


def verify(folder: Folder, step: int) -> str | None:
    """What is wrong with a checkpoint, None where every hash holds.

    Raises InputError where it is of a format that another Manyview has made, OSError where storage fails.
    """
    try:
        manifest = folder.read_json(MANIFEST)
        made_as, says, files = manifest.get("format", 1), manifest["step"], dict(manifest["files"])
        told = manifest.pop("sha256", None)
        expected = [(name, files[name]["size"], files[name]["sha256"]) for name in files]
    except FileNotFoundError:
        return f"has no {MANIFEST}: it is being written, or its saving was cut off"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if (told is not None or made_as == FORMAT) and told != _sha256_of(manifest):
        return f"{MANIFEST} does not match its own hash"
    if made_as not in FORMATS:
        raise InputError(
            f"{folder}: a checkpoint of format {made_as}, and this Manyview reads formats up to {FORMAT}; go on with "
            "the version that wrote it, or a later one"
        )
    if says != step:
        return f"says that it stands at step {says}"
    if not {TENSORS, STRUCTURE} <= files.keys():
        return f"{MANIFEST} does not name {TENSORS} and {STRUCTURE}"
    problems = (_problem(folder, *one) for one in expected)
    return next((problem for problem in problems if problem is not None), None)


def _sha256_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read(folder: Folder, manifest: dict[str, Any]) -> Any:
    """The state of a checkpoint, its tensors on the CPU, from bytes that are those of its MANIFEST.

    Raises OSError where storage fails or gives other bytes, InputError where it is none of ours.
    """
    try:
        structure = json.loads(_read_whole(folder, STRUCTURE, manifest))
        return attach(structure["state"], safetensors.torch.load(_read_whole(folder, TENSORS, manifest)))
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{folder}: its hashes hold, and it is no checkpoint of Manyview ({type(error).__name__}); remove it"
        ) from None


def _read_whole(folder: Folder, name: str, manifest: dict[str, Any]) -> bytes:
    content = folder.read(name)
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise OSError(errno.EIO, "what was read does not match its hash", folder.file(name))
    return content


def _problem(folder: Folder, name: str, size: int, sha256: str) -> str | None:
    try:
        there = folder.size(name)
        if there != size:
            return f"{name} has {there} bytes instead of {size}"
        return None if folder.sha256(name) == sha256 else f"{name} does not match its hash"
    except FileNotFoundError:
        return f"{name} is missing"


def _write_tensors(folder: Folder, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write what `safetensors.torch.save` would return, tensor by tensor; its size and SHA-256.

    `save` itself holds all of it in memory once more. The library's `save_file` leaves a file that only its owner may
    read and that is not flushed to disk, and its errors have no number (disk full?).
    """
    header, order = _header(tensors)
    digest, size = hashlib.sha256(), 0
    with folder.create(TENSORS) as file:
        for piece in (header, *(_memory(tensors[name]) for name in order)):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    return {"size": size, "sha256": digest.hexdigest()}


def _header(tensors: dict[str, torch.Tensor]) -> tuple[bytes, list[str]]:
    """The header of a safetensors file and the order of its tensors, both as the library has them."""
    empty = safetensors.torch.save({name: tensor.new_empty(0) for name, tensor in tensors.items()})
    entries, position = json.loads(empty[8:]), 0
    for name, entry in entries.items():
        begin, position = position, position + tensors[name].nbytes
        entry.update(shape=list(tensors[name].shape), data_offsets=[begin, position])
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, list(entries)


def _memory(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
