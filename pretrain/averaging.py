"""A moving average of weights over steps, which often encodes better than the weights of any one step.

As in Polyak & Juditsky (1992), with the exponential weights of Tarvainen & Valpola (2017).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Averages of the floating-point state of some modules: their weights and, alike, their running statistics.

    Counters are not averaged. After n steps the decay is min(`decay`, (1 + n) / (10 + n)), so that the weights of
    the first steps, drawn at random, are soon forgotten in a short stage too.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self._decay = decay
        self._live = {
            f"{name}.{key}": tensor.detach()
            for name, module in modules.items()
            for key, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        }
        self._average = {key: tensor.clone() for key, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int, good: Tensor) -> None:
        """Move towards the present weights after a step (from 0), unless `good`, a 0 or 1 on the device, is 0."""
        share = good * (1 - min(self._decay, (1 + step) / (10 + step)))
        averages = list(self._average.values())
        apart = torch._foreach_sub(list(self._live.values()), averages)
        torch._foreach_mul_(apart, share)
        torch._foreach_add_(averages, apart)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the modules hold the averages; afterwards, to the bit, their own weights again."""
        live, own = list(self._live.values()), [tensor.clone() for tensor in self._live.values()]
        torch._foreach_copy_(live, list(self._average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(live, own)

    def state(self) -> dict[str, Tensor]:
        """The averages by name."""
        return self._average

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for key, average in self._average.items():
            average.copy_(state[key])
