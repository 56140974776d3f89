"""Whether a run fits: its batches into its GPUs and its checkpoints onto a disk, known before the first step."""

from collections.abc import Sequence

from clusters import distributed
from clusters.config import InputError
from clusters.preflight import Needs
from clusters.tracking import say
from pretrain.config import PretrainConfig
from pretrain.footprint import Footprint, checkpoint_bytes, footprint, usable
from pretrain.workers import possible_workers


def needs_of(config: PretrainConfig) -> Needs:
    """What a run asks of every node; each stage keeps its own checkpoints, also when it is finished."""
    states, keeps = [checkpoint_bytes(config, number) for number in range(len(config.stages))], config.checkpoint
    return Needs(config.locations, states, keeps.keep + keeps.keep_best, keeps.keep_every_h)


def check_memory(config: PretrainConfig, numbers: Sequence[int]) -> None:
    """Raise InputError on all ranks where one of these stages does not fit on their GPUs; nothing without GPUs.

    Where workers may go, it must fit on the fewest that may be left.
    """
    memories = distributed.gather_objects(distributed.device_memory())
    if None in memories:
        return
    fewest = possible_workers(config)[0] if config.cluster.elastic else len(memories)
    problem = None
    if distributed.is_main():
        try:
            for number in numbers:
                check_fits(config, number, min(memories), fewest)
        except InputError as error:
            problem = error
    distributed.stop_together(problem)


def check_fits(config: PretrainConfig, number: int, device_bytes: int, num_workers: int) -> None:
    """Raise InputError, with the numbers, where a stage's batch does not fit on GPUs of so many bytes.

    A contrastive batch cannot be accumulated from smaller ones: each sample's negatives are all the others. Where the
    network is compiled, which may keep less than is counted here, the same is said and nothing is raised.
    """
    needs, share = footprint(config, number), config.stages[number].batch_size // num_workers
    if needs.needed(share, num_workers) <= usable(device_bytes):
        return
    problem = what_does_not_fit(needs, config.stages[number].batch_size, device_bytes, num_workers)
    if not config.compute.compile:
        where = f" on {num_workers}, the fewest of cluster.num_workers," if config.cluster.elastic else ""
        raise InputError(f"stages.{number}.batch_size:{where} {problem}")
    say(f"{config.stage_name(number)}: as it is without compute.compile, {problem}")


def what_does_not_fit(needs: Footprint, batch_size: int, device_bytes: int, num_workers: int) -> str:
    """The numbers and the mend, for a stage that is too large for a device."""
    share, more = batch_size // num_workers, needs.workers_for(batch_size, device_bytes)
    mends = [f"on {more} GPUs or more it fits"] if more is not None else ["no number of such GPUs is enough"]
    largest = needs.largest(device_bytes, num_workers)
    if largest * num_workers >= 2:
        mends.append(f"on {num_workers} at most batch_size={largest * num_workers}")
    return (
        f"{share} samples a GPU need {needs.needed(share, num_workers) / 1e9:.1f} GB and "
        f"{usable(device_bytes) / 1e9:.1f} of {device_bytes / 1e9:.0f} GB can be used; {', '.join(mends)} "
        "(a contrastive batch cannot be accumulated)"
    )
