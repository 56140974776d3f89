"""What the tests of the loss run on one process and on four; it loads little, since each process loads it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clusters import distributed
from pretrain.losses import nt_xent

COLLECTIVES = ("all_gather", "all_gather_into_tensor", "all_reduce", "reduce_scatter", "broadcast", "all_to_all")


@contextmanager
def counted_collectives() -> Iterator[Counter[str]]:
    """Counts, by name, the collectives that are called; they run all the same."""
    counts: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            counts[name] += 1
            return call(*values, **named)

        return counted

    originals = {name: getattr(torch.distributed, name) for name in COLLECTIVES}
    for name, call in originals.items():
        setattr(torch.distributed, name, counting(name, call))
    try:
        yield counts
    finally:
        for name, call in originals.items():
            setattr(torch.distributed, name, call)


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a global batch."""
    return rows.chunk(distributed.world_size())[distributed.rank()]


def nt_xent_counted(masked: bool) -> dict[str, Any]:
    """Mean loss, the gradient of this rank's projections (2, n, D) and the collectives of either pass."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 8, generator=generator)
    projected = torch.stack([share(first), share(second)]).requires_grad_()
    groups = None
    if masked:
        # Samples 1 and 7 are one, patients have two samples each, one picture stands in two cases.
        samples = share(torch.tensor([1, 2, 3, 4, 5, 6, 1, 8, 9, 10, 11, 12])).repeat(2)
        patients = share(torch.arange(12) % 6).repeat(2)
        pictures = torch.cat([share(torch.arange(12)), share(torch.tensor([20, 21, 22, 5, *range(24, 32)]))])
        groups = torch.stack([samples, patients, pictures], dim=1)
    with counted_collectives() as forward:
        loss = nt_xent(projected[0], projected[1], 0.2, groups)
    with counted_collectives() as backward:
        loss.backward()
    mean = distributed.sum_over_ranks(loss) / distributed.world_size()
    assert projected.grad is not None
    return {
        "loss": float(mean),
        "gradient": projected.grad,
        "forward": dict(forward),
        "backward": dict(backward),
    }
