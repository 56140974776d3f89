"""When a checkpoint is written and which of them are kept: a function of what their MANIFESTs say, whoever asks."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from clusters import checkpoint_files
from clusters.checkpoint_files import MANIFEST, Name
from clusters.config import Config
from clusters.storage import Folder

BEST_BY = "probe/knn_auroc"
"""The score by which checkpoints are compared: pretraining's kNN probe on validation cases; larger is better."""


class CheckpointConfig(Config):
    """When to save the training state and what to keep. May change between resumes."""

    every_s: float = Field(default=300.0, gt=0, description="seconds between checkpoints")
    every_steps: int | None = Field(default=None, ge=1, description="also after so many steps (none: by time only)")
    keep: int = Field(default=3, ge=2, description="how many of the newest checkpoints to keep")
    keep_best: int = Field(
        default=0,
        ge=0,
        description=f"in pretraining, keep also so many with the highest {BEST_BY}; then each probe is followed by a "
        "checkpoint",
    )
    keep_every_h: float | None = Field(
        default=None, gt=0, description="keep also one for every so many hours that the stage has been trained for"
    )
    timeout_s: float = Field(
        default=300.0, gt=0, description="seconds that the end of a stage waits for storage that has stalled"
    )


@dataclass(frozen=True)
class Saved:
    """What a checkpoint's MANIFEST says about it: seconds trained over all starts, and its score if it has one."""

    name: Name
    trained_s: float
    score: float | None


def saved(folder: Folder) -> list[Saved]:
    """The committed checkpoints in a folder, the oldest first; a MANIFEST that cannot be read says nothing."""
    found = []
    for name in checkpoint_files.names(folder):
        try:
            about = (folder / str(name)).read_json(MANIFEST)
            trained_s, score = float(about.get("trained_s", 0.0)), about.get("scores", {}).get(BEST_BY)
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            trained_s, score = 0.0, None
        found.append(Saved(name, trained_s, score))
    return found


def kept(checkpoints: Sequence[Saved], config: CheckpointConfig) -> dict[Name, list[str]]:
    """Why each of the checkpoints (the oldest first) is kept; those that are not named may go."""
    reasons: dict[Name, list[str]] = {one.name: ["newest"] for one in checkpoints[-config.keep :]}
    scored = [(one.score, one.name) for one in checkpoints if one.score is not None]
    for score, name in sorted(scored, key=lambda one: (-one[0], one[1]))[: config.keep_best]:
        reasons.setdefault(name, []).append(f"best, {BEST_BY} {score:.4f}")
    period_s = 3600 * config.keep_every_h if config.keep_every_h else float("inf")
    periods = [int(one.trained_s // period_s) for one in checkpoints]
    for one, period, before in zip(checkpoints, periods, [0, *periods]):
        if period > before:
            reasons.setdefault(one.name, []).append(f"every {config.keep_every_h:g} h")
    return reasons
