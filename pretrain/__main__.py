"""`python -m pretrain RECIPE.yaml data=DIR run=DIR [key=value …]`: from images to an encoder.

`python -m pretrain preview RECIPE.yaml data=DIR [out=FILE.html]`: what it will see, on a page.
`python -m pretrain plan RECIPE.yaml [key=value …]` says what that needs.
`python -m pretrain simulate RECIPE.yaml [key=value …]` says how that would go on 8 to 1,024 GPUs.
`python -m pretrain doctor RUN [RECIPE.yaml key=value …]` says what of a run can be resumed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from clusters.command import describe, run_main
from clusters.config import InputError, load_config, nearest


def _help() -> str:
    from pretrain.config import PretrainConfig

    return f"""usage: python -m pretrain RECIPE.yaml data=DIR run=DIR [key=value …]
       python -m pretrain preview RECIPE.yaml data=DIR [out=preview.html] [num_cases=8] [key=value …]
       python -m pretrain plan RECIPE.yaml [data=DIR | num_samples=N] [key=value …]
       python -m pretrain simulate RECIPE.yaml data=DIR | num_images=N [gpus=[8,64,256,1024]] [key=value …]
       python -m pretrain doctor RUN [RECIPE.yaml key=value …]

Learns an encoder from a dataset folder by the stages of a recipe (pretrain/recipes/*.yaml), each in its
own sub-folder of the run. The same command continues an interrupted run at the exact next batch.

  python -m pretrain pretrain/recipes/ham10000.yaml data=/data/ham run=/runs/ham cluster.num_workers=2

`preview` writes one page of sampled pairs and their views, as the first step of each stage would see them; it
needs no run= and starts nothing.

`plan` prints memory, the largest batch of each GPU, expected speed, hours and loader cores; it starts nothing and
needs no GPU.

  python -m pretrain plan pretrain/recipes/chexpert.yaml cluster.num_workers=8

`simulate` replays order, shard cache and collectives for clusters that are not there: bytes read, time waited for
communication, efficiency, what holds each up first, and all that it assumes. It needs no GPU and starts nothing.

  python -m pretrain simulate pretrain/recipes/chexpert.yaml num_images=10000000 samples_per_gpu=128

`doctor` verifies every checkpoint of a run by hash and says what would be continued, from where, and, where a recipe
is given, what in it would be refused. It changes nothing; exit code 2 where the run cannot go on.

key                                  default          meaning
{describe(PretrainConfig)}"""


def _pretrain(argv: Sequence[str]) -> None:
    from pretrain.config import PretrainConfig

    config = load_config(PretrainConfig, argv)
    config.tracking.apply_privacy()
    from pretrain.run import pretrain  # after it, since networks take seconds to import: a refusal comes without

    pretrain(config)


def _preview(argv: Sequence[str]) -> None:
    from pretrain.preview import PreviewConfig, preview

    print(preview(load_config(PreviewConfig, argv)))


def _plan(argv: Sequence[str]) -> None:
    from pretrain.plan import PlanConfig, plan

    for line in plan(load_config(PlanConfig, argv)):
        print(line, flush=True)


def _simulate(argv: Sequence[str]) -> None:
    from pretrain.simulate import simulate, write_json
    from pretrain.simulate_config import SimulateConfig
    from pretrain.simulate_page import page

    config, stages = load_config(SimulateConfig, argv), []
    for stage in simulate(config):
        stages.append(stage)
        for line in page(config, stage):
            print(line, flush=True)
    if config.out:
        write_json(stages, config)


def _doctor(argv: Sequence[str]) -> None:
    from pretrain.doctor import doctor

    for line in doctor(argv):
        print(line, flush=True)


COMMANDS = {
    "preview": _preview,
    "plan": _plan,
    "simulate": _simulate,
    "doctor": _doctor,
}


def _run(argv: Sequence[str]) -> None:
    command = COMMANDS.get(argv[0])
    if command is None and "=" not in argv[0] and "." not in argv[0] and not Path(argv[0]).exists():
        raise InputError(
            f"'{argv[0]}' is neither a recipe file nor preview, plan, simulate or doctor"
            f"{nearest(argv[0], list(COMMANDS))}"
        )
    if command is None:
        _pretrain(argv)
    else:
        command(argv[1:])


if __name__ == "__main__":
    run_main(_run, sys.argv[1:], _help)
