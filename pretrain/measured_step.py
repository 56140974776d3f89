"""A few real steps of a stage by one process on the device at hand, timed."""

import statistics
import time
from contextlib import nullcontext

import torch

from clusters import distributed
from clusters.batch_norm import global_batch_norm
from pretrain.config import PretrainConfig
from pretrain.step_trace import ranks_without_network
from pretrain.training import Training, build_module

UNCOUNTED, COUNTED = 2, 5


def measured_as(num_ranks: int) -> int:
    """As one of how many ranks a step is measured: on a GPU, whose batch norms over ranks are torch's, as one alone."""
    return num_ranks if distributed.device().type == "cpu" else 1


def measured_step_s(config: PretrainConfig, number: int, share: int, num_ranks: int) -> float:
    """Seconds of a step with so many samples (at least two) and random views, without loading; the median of five.

    It is what one of `measured_as(num_ranks)` ranks computes, all of whose collectives take no time: batch norm over
    ranks is put together from single operations on CPUs, and the loss sees the projections of all. What is learned from
    such collectives is nothing.
    """
    share, device = max(2, share), distributed.device()
    stage = config.stages[number].model_copy(update={"batch_size": share})
    stages = [*config.stages[:number], stage, *config.stages[number + 1 :]]
    compute = config.compute.model_copy(update={"batch_norm_group": None})
    config = config.model_copy(update={"stages": stages, "compute": compute})
    training = Training(config, number, build_module(config, number, None)[0], UNCOUNTED + COUNTED)
    size = config.stage_views(number).size_px
    views_NCHW = torch.randn(2 * share, config.encoder.channels, size, size, device=device)
    views_VBCHW = views_NCHW.contiguous(memory_format=torch.channels_last).unflatten(0, (2, share))
    groups_VBG = torch.arange(share, device=device).expand(2, share)[:, :, None]
    seconds, ranks = [], measured_as(num_ranks)
    with ranks_without_network(ranks, device) if ranks > 1 else nullcontext():
        global_batch_norm(training.module)
        for step in range(UNCOUNTED + COUNTED):
            started = time.perf_counter()
            training.step(step, views_VBCHW, groups_VBG)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[UNCOUNTED:])
