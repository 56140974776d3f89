"""How many samples a second a CPU core loads, timed on the dataset or as the benchmark has it."""

import time

from data.combined import AnyDataset
from pretrain.batches import ViewBatches
from pretrain.config import PretrainConfig
from pretrain.methods import METHODS
from pretrain.stage import Samples

LOADED_PER_CORE = {"loader": 826.0, "device": 1909.0}
"""Samples a second and core, 224 px views of 256 px JPEGs, with all augmentation or crops only, as measured
in tests/benchmarks/README.md."""
TIMED_S, TIMED_BATCH = 1.0, 32


def measured_per_core(config: PretrainConfig, number: int, dataset: AnyDataset, samples: Samples) -> float:
    """Samples a second and core (CPU time of this thread) over about a second of real loading."""
    stage, views = config.stages[number], config.stage_views(number)
    pair = METHODS[stage.method].pairing(stage, dataset, samples)  # type: ignore[arg-type]
    size = min(TIMED_BATCH, len(samples))
    augment = config.augment == "loader"
    batches = ViewBatches(dataset, samples, pair, views, config.seed, number, size, 0, 1, augment=augment)
    batches(0)
    step, started, until = 0, time.thread_time(), time.monotonic() + TIMED_S
    while time.monotonic() < until:
        step += 1
        batches(step)
    return step * size / max(1e-9, time.thread_time() - started)
