"""How much each of several heads counts in the loss: weights that are learned along with everything else.

Shapes: B images, T tasks.
"""

import torch
from torch import Tensor, nn


class LearnedTaskWeights(nn.Module):
    """Σₜ Lₜ / (2 cₜ²) + ln(1 + cₜ²), the scales c learned (Liebel & Körner, 2018, arXiv:1805.06334).

    A task whose loss stays large is given a larger c, so that losses in different units come to weigh alike; the
    logarithm, which is never negative, keeps c from growing without bound. All scales begin at 1.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.scale_T = nn.Parameter(torch.ones(num_tasks))

    def forward(self, losses_BT: Tensor) -> Tensor:
        """The loss of each image, (B,); the mean over images is the formula of their mean losses."""
        square_T = self.scale_T.square()
        return (losses_BT / (2 * square_T) + torch.log1p(square_T)).sum(dim=1)
