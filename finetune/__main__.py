"""`python -m finetune RECIPE.yaml data=DIR encoder=RUN out=DIR [key=value …]`: encoder to diagnosis.

`python -m finetune COMMAND …` runs one of the other commands; each is a module with `usage()` and `run(argv)`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from clusters.command import describe, run_main
from clusters.config import load_config

COMMANDS: dict[str, str] = {
    "compare": "finetune.compare",
    "coverage": "finetune.coverage",
    "efficiency": "finetune.efficiency",
    "evaluate": "finetune.external",
    "export": "finetune.export",
    "predict": "finetune.predict",
    "report": "finetune.report.command",
    "search": "finetune.search",
    "table": "finetune.table",
}
"""Name of a command → the module of it."""


def _help() -> str:
    from finetune.config import FinetuneConfig

    return f"""usage: python -m finetune RECIPE.yaml data=DIR encoder=RUN_OR_FOLDER out=DIR [key=value …]

Trains a classifier on a pretrained encoder, compares it with baselines on the same patients, and writes
results.json, predictions.parquet, model/ and report.html. All choices are made on the validation split; the
test split is evaluated once. The same command continues an interrupted run.

  python -m finetune finetune/recipes/ham10000_linear.yaml data=/data/ham encoder=/runs/ham out=/runs/ham-linear

Other commands, each with a --help of its own: {", ".join(COMMANDS)}.

key                                  default          meaning
{describe(FinetuneConfig)}"""


def _run(argv: Sequence[str]) -> None:
    from finetune.config import FinetuneConfig

    config = load_config(FinetuneConfig, argv)
    config.tracking.apply_privacy()
    from finetune.run import finetune

    finetune(config)


def _main(argv: Sequence[str]) -> None:
    if argv and argv[0] in COMMANDS:
        command = import_module(COMMANDS[argv[0]])
        run_main(command.run, argv[1:], command.usage)
    else:
        run_main(_run, argv, _help)


if __name__ == "__main__":
    _main(sys.argv[1:])
