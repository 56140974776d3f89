"""Published rates of GPUs, and the speed to expect of a training step from them: expected, never measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrain.footprint import Footprint

BANDWIDTH_SHARE, FLOPS_SHARE = 0.88, 0.48
"""Shares of the published rates that large kernels reach: copies, and the convolutions and products of a network."""
PESSIMIST = 0.75
"""The lower end of what is expected, as a share of the upper one."""


@dataclass(frozen=True)
class Card:
    """A GPU by its maker's data sheet: memory, bf16 matrix products without sparsity, bandwidth.

    Rates are 0 where they are not known.
    """

    name: str
    memory: int
    flops_per_s: float
    bytes_per_s: float

    def expected(self, needs: Footprint, num_samples: int) -> tuple[float, float] | None:
        """Samples a second, low and high, of one card with so many of them in a step; none without its rates.

        The high end adds the time of the memory traffic and that of the arithmetic: ResNets wait for memory, so the
        two hardly overlap. The same sum gave 2,220 views a second for ResNet-50 on an A100, where 2,470 to 2,600 are
        published.
        """
        if not self.flops_per_s:
            return None
        traffic_s = needs.traffic(num_samples) / (BANDWIDTH_SHARE * self.bytes_per_s)
        arithmetic_s = needs.flops(num_samples) / (FLOPS_SHARE * self.flops_per_s)
        high = num_samples / (traffic_s + arithmetic_s)
        return PESSIMIST * high, high


CARDS = (
    Card("A10", 24 * 10**9, 125e12, 0.600e12),
    Card("A100 40 GB", 40 * 10**9, 312e12, 1.555e12),
    Card("A100 80 GB", 80 * 10**9, 312e12, 2.039e12),
    Card("H100 SXM", 80 * 10**9, 989e12, 3.35e12),
    Card("H200 SXM", 141 * 10**9, 989e12, 4.8e12),
)
"""NVIDIA's data sheets of the A10, A100, H100 and H200."""


def cards() -> Sequence[Card]:
    """The cards of the table and, first, the one in this machine if there is one."""
    if not torch.cuda.is_available():
        return CARDS
    here = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = next((c for c in reversed(CARDS) if c.name.split()[0] in here.name.split()), None)
    rates = (known.flops_per_s, known.bytes_per_s) if known else (0.0, 0.0)
    return (Card(f"here: {here.name}", here.total_memory, *rates), *CARDS)
