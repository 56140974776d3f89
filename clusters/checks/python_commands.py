"""Commands of this project in a recipe (`python -m pretrain …`): the module, the run's recipe, what this room reads."""

import functools
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from clusters.checks.slips import slip_of
from clusters.checks.words import commands_in
from clusters.config import Config, InputError, load_config, nearest

TREE = Path(__file__).parents[2]
IN_IMAGE = "/opt/manyview/"  # where the Dockerfile puts the same files
MODULES = ["clusters", "data", "pretrain", "finetune"]
TRAINING = ["pretrain", "finetune"]
SECTIONS = ["cluster", "checkpoint", "tracking"]
PYTHON = re.compile(r"(?:\w+=)?[({!`$]*(?:.*/)?python[\d.]*|\$\{?PYTHON\}?")
MODULE_OPTION = re.compile(r"-[bBdEhiIOPqsSuvx]*m(.*)")
UNKNOWN = re.compile(r"[$`…]")  # what a shell, or a person, has yet to put in


def wrong_python(text: str) -> Iterator[tuple[str, str]]:
    """`(what, mend)` for what the commands in some shell text ask of this project's modules and should not."""
    for words in commands_in(text):
        for place, word in enumerate(words):
            if re.search(r"[ \t\r\n]", word):  # what parts words: a command for another shell, such as bash -c '…'
                yield from wrong_python(word)
            elif PYTHON.fullmatch(word):
                yield from _wrong_module(words[place + 1 :])


def _wrong_module(words: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the words behind one `python`."""
    while words and words[0].startswith("-"):
        option, *words = words
        named = MODULE_OPTION.fullmatch(option)
        if named is not None:
            module, *words = [named[1], *words] if named[1] else (words or [""])
            module = module.rstrip(")`")
            meant = slip_of(module.partition(".")[0], MODULES)
            if meant is not None:
                yield f"there is no module '{module}' (nearest: {meant})", f"write python -m {meant}"
            if (meant or module) in TRAINING:
                yield from _wrong_run(meant or module, [word.rstrip(")`") for word in words])
            return
        if option in ("-X", "-W", "--check-hash-based-pycs"):
            words = words[1:]
        elif option == "-c":
            return


def _wrong_run(module: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the words behind `python -m pretrain` or `finetune`."""
    for word in words:
        if "=" not in word and not UNKNOWN.search(word) and _is_absent(word):
            yield (
                f"there is no recipe {word}{nearest(_in_tree(word), _recipes())}",
                "name one of */recipes/*.yaml, or add it there",
            )
    if not words or not re.search(r"[./$]", words[0]):  # another command, with settings of its own
        return
    settings = [word for word in words if re.match(r"\w+\.\w+=", word) and not UNKNOWN.search(word)]
    for section in dict.fromkeys(word.partition(".")[0] for word in settings):
        meant = slip_of(section, SECTIONS)
        if meant is not None:
            yield f"{module} has no section '{section}' (nearest: {meant})", f"write {meant}."
    for section in SECTIONS:
        own = [word.removeprefix(f"{section}.") for word in settings if word.startswith(f"{section}.")]
        try:
            if own:
                load_config(_config_of(section), own)
        except InputError as error:
            yield f"{section}: {error}", f"see python -m {module} --help"


def _config_of(section: str) -> type[Config]:
    """The type of a section that this room reads; the others are read where no import from here leads."""
    if section == "cluster":
        from clusters.workers import ClusterConfig

        return ClusterConfig
    if section == "checkpoint":
        from clusters.checkpoint_policy import CheckpointConfig

        return CheckpointConfig
    from clusters.tracking import TrackingConfig

    return TrackingConfig


def _is_absent(word: str) -> bool:
    """Whether a path is one of this project's recipes, here or in its image, and there is none there."""
    path = _in_tree(word)
    room, *below = path.split("/")
    ours = (room in TRAINING or slip_of(room, TRAINING)) and len(below) > 1
    looks = re.search(r"\.ya?ml$", path) or below[:1] == ["recipes"]
    return bool(ours and looks and _recipes() and not (TREE / path).is_file())


def _in_tree(word: str) -> str:
    return posixpath.normpath(word).removeprefix(IN_IMAGE)


@functools.cache
def _recipes() -> list[str]:
    """The recipes of runs in this source tree: none where only this room is there."""
    return sorted(str(path.relative_to(TREE)) for path in TREE.glob("*/recipes/*.yaml"))
