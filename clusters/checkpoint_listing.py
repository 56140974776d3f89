"""What checkpoints a stage has and which of them are whole. Reads only: no attempt is begun, nothing is set aside."""

from dataclasses import dataclass

from clusters.checkpoint_files import MANIFEST, Name, parse_name, verify
from clusters.checkpoint_policy import CheckpointConfig, kept, saved
from clusters.storage import Folder

DAMAGED = "damaged-"


@dataclass(frozen=True)
class Listed:
    """One checkpoint: its name and step, its size, and what is wrong with it, if anything is.

    `committed`: its saving came to an end, so that it counts, and damage to it is damage. `kept`: what for, by the
    policy that was asked for.
    """

    name: str
    step: int
    size_bytes: int
    committed: bool
    problem: str | None
    kept: tuple[str, ...] = ()


def list_checkpoints(folder: Folder, policy: CheckpointConfig | None = None) -> list[Listed]:
    """The checkpoints of a stage, newest first, each verified by size and SHA-256; those set aside come last.

    Raises InputError where one is of a format that another Manyview has made.
    """
    at = folder / "checkpoints"
    sizes: dict[str, dict[str, int]] = {}
    for path, size in at.sizes().items() if at.exists() else ():
        name, _, file = path.partition("/")
        if file:
            sizes.setdefault(name, {})[file] = size
    reasons = kept(saved(at), policy or CheckpointConfig()) if sizes else {}
    found = []
    for text, files in sizes.items():
        name = _parse(text)
        aside, why = text.startswith(DAMAGED), tuple(reasons.get(name, ()))
        problem = "was found damaged and set aside" if aside else _problem(at / text, name)
        committed = aside or MANIFEST in files
        found.append((name, Listed(text, name.step, sum(files.values()), committed, problem, () if aside else why)))
    found.sort(key=lambda one: (not one[1].name.startswith(DAMAGED), one[0]), reverse=True)
    return [listed for _, listed in found]


def _problem(folder: Folder, name: Name) -> str | None:
    try:
        return verify(folder, name.step)
    except OSError as error:
        return f"cannot be read ({type(error).__name__})"


def _parse(text: str) -> Name:
    bare, _, _ = text.removeprefix(DAMAGED).rpartition("-attempt-") if text.startswith(DAMAGED) else (text, "", "")
    return parse_name(bare) or Name(-1, 1)
