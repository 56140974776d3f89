"""Among how many workers a recipe's batches can be divided, and what of a run depends on it."""

from collections.abc import Iterator

import torch
from torch import nn

from clusters.config import InputError
from pretrain.compute import ranks_per_group
from pretrain.config import PretrainConfig
from pretrain.encoder import create_encoder


def possible_workers(config: PretrainConfig) -> list[int]:
    """The numbers of workers, ascending, that cluster.num_workers allows and that all stages' batches suit.

    Each worker holds an equal share of the global batch, and whole groups of batch norm stay on whole workers.
    Raises InputError with the numbers where there is none.
    """

    def check(num_workers: int) -> None:
        for number, stage in enumerate(config.stages):
            if stage.batch_size % num_workers:
                raise InputError(
                    f"stages.{number}.batch_size: {stage.batch_size} cannot be divided equally among "
                    f"{num_workers} workers; choose a multiple"
                )
            ranks_per_group(config.compute.batch_norm_group, stage.batch_size, num_workers, f"stages.{number}")

    return config.cluster.sizes_that_pass(check)


def elastic_remarks(config: PretrainConfig, possible: list[int]) -> Iterator[str]:
    """What to know of a run whose number of workers may change."""
    if not config.cluster.elastic:
        return
    if len(possible) < len(config.cluster.sizes):
        yield (
            f"cluster.num_workers: of {config.cluster.said} workers {', '.join(map(str, possible))} can be used, since "
            "batches cannot be shared equally among others"
        )
    with torch.device("meta"):
        encoder = create_encoder(config.encoder, config.stage_views(0).size_px)
    if any(map(_draws, encoder.modules())):
        yield (
            f"encoder.name: '{config.encoder.name}' leaves out parts of itself at random, each worker by draws of its "
            "own; batches and views are the same on any number of workers, these draws are not"
        )


def _draws(module: nn.Module) -> bool:
    """Whether a layer draws numbers while it trains: dropout or stochastic depth."""
    from timm.layers import DropPath  # here, since it takes seconds

    if isinstance(module, DropPath):
        return bool(module.drop_prob)
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
