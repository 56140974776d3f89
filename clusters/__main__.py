"""`python -m clusters COMMAND …`: recipes for clusters checked, runs listed, jobs submitted."""

import importlib
import sys
from collections.abc import Sequence

from clusters.command import run_main
from clusters.config import InputError, nearest

COMMANDS = {"check": "clusters.check", "runs": "clusters.runs", "submit": "clusters.submit"}


def _help() -> str:
    told = "\n".join(importlib.import_module(module).usage() for module in COMMANDS.values())
    return f"usage: python -m clusters COMMAND …\n\n{told}"


def _run(argv: Sequence[str]) -> None:
    module = COMMANDS.get(argv[0])
    if module is None:
        raise InputError(
            f"there is no command '{argv[0]}'{nearest(argv[0], list(COMMANDS))}; see python -m clusters --help"
        )
    importlib.import_module(module).run(argv[1:])


if __name__ == "__main__":
    run_main(_run, sys.argv[1:], _help)
