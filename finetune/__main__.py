"""`python -m finetune RECIPE.yaml data=DIR encoder=RUN out=DIR [key=value …]`: encoder to diagnosis."""

import sys
from collections.abc import Sequence

from clusters.config import describe, load_config, run_main


def _help() -> str:
    from finetune.config import FinetuneConfig

    return f"""usage: python -m finetune RECIPE.yaml data=DIR encoder=RUN_OR_FOLDER out=DIR [key=value …]

Trains a classifier on a pretrained encoder, compares it with baselines on the same patients, and writes
results.json, predictions.parquet, model/ and report.html. All choices are made on the validation split; the
test split is evaluated once. The same command continues an interrupted run.

  python -m finetune finetune/recipes/ham10000_linear.yaml data=/data/ham encoder=/runs/ham out=/runs/ham-linear

key                                  default          meaning
{describe(FinetuneConfig)}"""


def _run(argv: Sequence[str]) -> None:
    from finetune.config import FinetuneConfig
    from finetune.run import finetune

    finetune(load_config(FinetuneConfig, argv))


if __name__ == "__main__":
    run_main(_run, sys.argv[1:], _help)
