"""`python -m pretrain RECIPE.yaml data=DIR run=DIR [key=value …]`: from images to an encoder."""

import sys
from collections.abc import Sequence

from clusters.config import describe, load_config, run_main


def _help() -> str:
    from pretrain.config import PretrainConfig

    return f"""usage: python -m pretrain RECIPE.yaml data=DIR run=DIR [key=value …]

Learns an encoder from a dataset folder by the stages of a recipe (pretrain/recipes/*.yaml), each in its
own sub-folder of the run. The same command continues an interrupted run at the exact next batch.

  python -m pretrain pretrain/recipes/ham10000.yaml data=/data/ham run=/runs/ham cluster.num_workers=2

key                                  default          meaning
{describe(PretrainConfig)}"""


def _run(argv: Sequence[str]) -> None:
    from pretrain.config import PretrainConfig
    from pretrain.run import pretrain

    pretrain(load_config(PretrainConfig, argv))


if __name__ == "__main__":
    run_main(_run, sys.argv[1:], _help)
