"""Training states on disk: whole or not there, verified by hash, never pickled.

    checkpoints/step-000001200/state.safetensors   every tensor of the state
                               state.json          the rest of it: numbers, names, structure
                               MANIFEST.json       sizes and SHA-256; written last, it is the commit

The run folder alone decides what is resumed. Ray is never given a checkpoint.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from pydantic import Field

from clusters import distributed, notice, tracking
from clusters.config import Config, InputError
from clusters.storage import Folder

MANIFEST = "MANIFEST.json"
TENSORS = "state.safetensors"
STRUCTURE = "state.json"


class CheckpointConfig(Config):
    """When to save the training state and how many to keep. May change between resumes."""

    every_s: float = Field(default=300.0, gt=0, description="seconds between checkpoints")
    every_steps: int | None = Field(default=None, ge=1, description="also after so many steps (none: by time only)")
    keep: int = Field(default=3, ge=2, description="how many of the newest checkpoints to keep")


@dataclass(frozen=True)
class Restored:
    """A verified training state and the step that it stands at."""

    step: int
    state: Any


class Superseded(InputError):
    """A newer start of the same run has taken over; this one must not write any more."""


class Checkpoints:
    """The checkpoints of one stage. Make one on every rank; rank 0 writes.

    Each start takes a higher attempt number. A writer that finds a newer one on disk stops, so that a
    stalled worker that wakes beside its replacement can do no harm.
    """

    def __init__(self, folder: Folder, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self._saved_at = time.monotonic()
        self._attempt = distributed.broadcast_object(self._begin_attempt() if distributed.is_main() else None)

    def due(self, step: int) -> bool:
        """Whether rank 0 should save after this step: by its number, by the clock, or since it was asked to."""
        by_step = self.config.every_steps is not None and step % self.config.every_steps == 0
        return by_step or notice.is_given() or time.monotonic() - self._saved_at >= self.config.every_s

    def save(self, step: int, state: Any) -> None:
        """Save a nested dict or list of tensors, numbers, strings and None. Rank 0 writes, others return.

        Raises Superseded where a newer start of this run has taken over.
        """
        if not distributed.is_main():
            return
        self._check_attempt()
        tensors: dict[str, torch.Tensor] = {}
        structure = _detach(state, "", tensors)
        contents = {
            TENSORS: safetensors.torch.save(tensors),
            STRUCTURE: json.dumps({"step": step, "attempt": self._attempt, "state": structure}).encode(),
        }
        target = self.folder / "checkpoints" / _name(step)
        for name, content in contents.items():
            target.write(name, content)
        target.write_json(MANIFEST, {"step": step, "files": {n: _fingerprint(c) for n, c in contents.items()}})
        self._saved_at = time.monotonic()
        notice.heeded()
        for old in self._steps()[: -self.config.keep]:
            (self.folder / "checkpoints").remove(_name(old))

    def restore(self) -> Restored | None:
        """The newest state whose hashes hold, the same on every rank; None where nothing was saved.

        A damaged checkpoint is set aside under another name and said; the one before it is used.
        Raises InputError where checkpoints exist and none is intact: never a silent start from step 0.
        """
        found = self._find_intact() if distributed.is_main() else None
        step = distributed.broadcast_object(found)
        if isinstance(step, str):
            raise InputError(step)
        return None if step is None else self._load(step)

    def _find_intact(self) -> int | str | None:
        steps = self._steps()
        for step in reversed(steps):
            problem = self._problem(step)
            if problem is None:
                return step
            aside = f"damaged-{_name(step)}-attempt-{self._attempt}"
            (self.folder / "checkpoints").move(_name(step), aside)
            tracking.say(f"checkpoint {_name(step)} is damaged ({problem}); set aside as {aside}")
        damaged = [n for n in (self.folder / "checkpoints").names() if n.startswith("damaged-")]
        if damaged:
            return (
                f"{self.folder.location}: none of its checkpoints is intact ({len(damaged)} damaged); remove this "
                "folder to start the stage again, or restore it from a backup"
            )
        unfinished = [n for n in (self.folder / "checkpoints").names() if n.startswith("step-")]
        if unfinished and not steps:
            tracking.say(
                f"{self.folder / 'checkpoints' / unfinished[0]} has no {MANIFEST}, as if its saving had been cut off; "
                "there is no other checkpoint, so the stage starts from step 0"
            )
        return None

    def _problem(self, step: int) -> str | None:
        folder = self.folder / "checkpoints" / _name(step)
        try:
            for name, expected in folder.read_json(MANIFEST)["files"].items():
                if _fingerprint(folder.read(name)) != expected:
                    return f"{name} does not match its hash"
            self._load(step)
        except (FileNotFoundError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _load(self, step: int) -> Restored:
        folder = self.folder / "checkpoints" / _name(step)
        structure = json.loads(folder.read(STRUCTURE))
        tensors = safetensors.torch.load(folder.read(TENSORS))
        if structure["step"] != step:
            raise ValueError(f"holds step {structure['step']}")
        return Restored(step, _attach(structure["state"], tensors))

    def _steps(self) -> list[int]:
        """Steps with a commit, ascending; by name, since clocks and file times may lie."""
        folder = self.folder / "checkpoints"
        names = [n for n in folder.names() if n.startswith("step-") and n[5:].isdigit()]
        return sorted(int(n[5:]) for n in names if folder.exists(f"{n}/{MANIFEST}"))

    def _begin_attempt(self) -> int:
        attempt = 1 + (self.folder.read_json("attempt.json")["attempt"] if self.folder.exists("attempt.json") else 0)
        self.folder.write_json("attempt.json", {"attempt": attempt})
        return attempt

    def _check_attempt(self) -> None:
        newest = self.folder.read_json("attempt.json")["attempt"]
        if newest != self._attempt:
            raise Superseded(
                f"{self.folder.location}: attempt {newest} of this run has taken over from attempt {self._attempt}; "
                "leave the run to it"
            )


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _fingerprint(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _detach(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Move tensors out of a nested state, leaving JSON with their names in their places."""
    if isinstance(value, torch.Tensor):
        # A copy of its own: safetensors takes no views of shared memory.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _detach(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_detach(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{path}: a {type(value).__name__} cannot be saved in a checkpoint")


def _attach(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, content = next(iter(node.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _attach(item, tensors) for key, item in content}
    if kind == "list":
        return [_attach(item, tensors) for item in content]
    return content
