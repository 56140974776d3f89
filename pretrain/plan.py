"""What a recipe needs and how long it takes, before anything is rented: `python -m pretrain plan RECIPE`.

Memory and arithmetic are counted (footprint.py). Speed is expected from published rates (cards.py), not measured,
and what rests on an assumption says so.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from clusters.config import InputError, absolute
from data.combined import open_datasets
from pretrain.cards import BANDWIDTH_SHARE, FLOPS_SHARE, PESSIMIST, cards
from pretrain.footprint import KEPT_FREE, KEPT_FREE_SHARE, footprint, usable
from pretrain.loading_speed import TIMED_S
from pretrain.planned_stage import PlanConfig, PlannedStage, planned_stage
from pretrain.run import check, check_recipe
from pretrain.workers import possible_workers


def plan(config: PlanConfig) -> Iterator[str]:
    """The plan, line by line. Raises InputError for what a run of the recipe would refuse."""
    dataset = None
    if config.encoder.weights == "timm:default":  # the same network, and nothing is fetched for a plan
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": "none"})})
    if config.data:
        config = config.model_copy(update={"data": [absolute(location) for location in config.locations]})
        check(config)
        dataset = open_datasets(config.locations, config.weights, config.loader.place)
    else:
        check_recipe(config)
    stages = [planned_stage(config, number, dataset) for number in range(len(config.stages))]
    for stage in stages:
        yield from _needs(stage)
        yield from _loading(stage)
        yield ""
        yield from _by_card(stage)
        yield ""
    if len(stages) > 1:
        for card in cards():
            hours = [took for took in (stage.hours(card) for stage in stages) if took is not None]
            if len(hours) == len(stages):
                yield f"all stages on {stages[0].workers} x {card.name}: {_span(tuple(map(sum, zip(*hours))))}"
    yield from _how_to_read(stages)


def _needs(stage: PlannedStage) -> Iterator[str]:
    """What a stage is made of and what one worker holds."""
    needs, recipe = stage.needs, stage.recipe
    length = f"{recipe.epochs:g} epochs" if stage.steps is None else f"{stage.steps:,} steps"
    if stage.steps is not None and stage.num_samples is not None:
        epochs = stage.steps * recipe.batch_size / stage.num_samples
        length += f", {epochs:,.3g} epochs of {stage.num_samples:,} samples"
    config, name = stage.config, stage.config.stage_name(stage.number)
    yield f"{name}: {config.encoder.name} at {stage.size_px} px, {config.precision}, {length}"
    split = "on one worker" if stage.workers == 1 else f"= {stage.workers} workers x {stage.share}"
    yield _fact("batch", f"{recipe.batch_size} samples of two views {split}")
    yield _fact(
        "parameters", f"encoder {needs.encoder_parameters / 1e6:.1f} M, heads {needs.head_parameters / 1e6:.1f} M"
    )
    averages = f", averages {size_text(needs.averages)}" if needs.averages else ""
    yield _fact(
        "memory, always",
        f"weights {size_text(needs.weights)}, gradients {size_text(needs.gradients)}, {recipe.optim.name} "
        f"{size_text(needs.optimiser)}{averages}",
    )
    yield _fact(
        "memory, a sample",
        f"{size_text(needs.held(stage.share) / stage.share)} of activations, "
        f"{size_text(needs.peak(stage.share) / stage.share)} at the peak, "
        f"{size_text(needs.input_per_sample)} of uint8 input",
    )
    if loss := needs.loss(stage.share, stage.workers):
        yield _fact("memory, loss", size_text(loss))
    yield _fact("one worker", f"{stage.share} samples need {size_text(needs.needed(stage.share, stage.workers))}")
    if config.cluster.elastic:
        fewest = possible_workers(config)[0]
        share = recipe.batch_size // fewest
        yield _fact("fewest workers", f"{fewest} x {share} samples need {size_text(needs.needed(share, fewest))} each")
    yield _fact(
        "work, a sample",
        f"{needs.flops.per_sample / 1e9:.1f} GFLOP, {size_text(needs.traffic.per_sample)} of memory traffic",
    )
    yield _fact("checkpoint", f"{size_text(needs.checkpoint)}; {config.checkpoint.keep} are kept")


def _loading(stage: PlannedStage) -> Iterator[str]:
    """How fast a core loads, and what the batches that stand ready take of shared memory."""
    what = "all augmentation" if stage.config.augment == "loader" else "crops only"
    how = f"measured here in {TIMED_S:g} s"
    if stage.measured is None:
        how = "by the benchmark (224 px views of 256 px JPEGs)"
    yield _fact("loading", f"{stage.loaded:,.0f} samples/s a core, {what}, {how}")
    batch = stage.share * stage.needs.input_per_sample
    there = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    yield _fact(
        "/dev/shm",
        f"a batch is {size_text(batch)}; each loader process keeps {stage.config.loader.prefetch} ready"
        + (f"; {size_text(there)} here" if there else ""),
    )


def _by_card(stage: PlannedStage) -> Iterator[str]:
    """A line a card: the largest batch, whether this one fits, speed, time and loader cores."""
    needs, fits_all = stage.needs, True
    yield _row("card", "usable", "most a GPU", "this batch", "samples/s", "time", "cores a GPU")
    for card in cards():
        largest, speed, hours = needs.largest(card.memory, stage.workers), stage.speed(card), stage.hours(card)
        cells = [card.name, f"{usable(card.memory) / 1e9:.1f} GB", f"{largest} samples"]
        if stage.share > largest:
            fits_all, more = False, needs.workers_for(stage.recipe.batch_size, card.memory)
            yield _row(*cells, f"needs {more} GPUs" if more else "does not fit", "", "", "")
        elif speed is None:
            yield _row(*cells, "fits", "", "", "")
        else:
            rate, cores = f"{speed[0]:,.0f}–{speed[1]:,.0f}", speed[1] / stage.workers / stage.loaded
            yield _row(*cells, "fits", rate, _span(hours) if hours else "", f"{cores:.1f}")
    if not fits_all:
        yield from _recomputed(stage)


def _recomputed(stage: PlannedStage) -> Iterator[str]:
    """What checkpointed activations would change, where they are not used yet and the network can."""
    try:
        needs = footprint(stage.config, stage.number, recompute=True)
    except InputError:
        return
    if needs.peak.per_sample < 0.95 * stage.needs.peak.per_sample:
        small = [card for card in cards() if stage.share > stage.needs.largest(card.memory, stage.workers)]
        most = ", ".join(f"{card.name} {needs.largest(card.memory, stage.workers)}" for card in small)
        yield "  with compute.checkpoint_activations=true (about a third slower) the most would be:"
        yield f"  {most}"


def _how_to_read(stages: list[PlannedStage]) -> Iterator[str]:
    yield (
        f"usable: {KEPT_FREE / 1e9:g} GB and {100 * KEPT_FREE_SHARE:.0f} % of a card are left to cuDNN, NCCL and "
        "fragments."
    )
    yield "A batch that does not fit is not accumulated from smaller ones: each sample is told apart"
    yield "from all others of its batch."
    yield "samples/s, time and cores are expected, not measured: memory traffic at"
    yield (
        f"{100 * BANDWIDTH_SHARE:.0f} % of the published bandwidth plus arithmetic at {100 * FLOPS_SHARE:.0f} % of the "
        f"published bf16 rate, and {PESSIMIST:g}"
    )
    yield "of that; equally fast on every worker. CPUs are not planned."
    if any(stage.steps is None for stage in stages):
        yield "Give data=DIR, or num_samples=[…], for steps and time."


def _fact(name: str, text: str) -> str:
    return f"  {name:<17} {text}"


def _row(*cells: str) -> str:
    widths = (-14, 8, 13, 13, 15, 13, 11)
    return "  " + " ".join(f"{cell:<{-w}}" if w < 0 else f"{cell:>{w}}" for cell, w in zip(cells, widths)).rstrip()


def _span(hours: tuple[float, ...]) -> str:
    """Hours, or minutes where there is less than one; nothing more exact under a minute."""
    if max(hours) < 1 / 60:
        return "< 1 min"
    if max(hours) < 1:
        return "–".join(f"{60 * value:.0f}" for value in hours) + " min"
    return "–".join(f"{value:.1f}" if value < 10 else f"{value:,.0f}" for value in hours) + " h"


def size_text(num_bytes: float) -> str:
    """Bytes as a person would say them."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")) if num_bytes >= u), (1, "B"))
    return f"{num_bytes / unit:.1f} {name}" if num_bytes < 100 * unit else f"{num_bytes / unit:,.0f} {name}"
