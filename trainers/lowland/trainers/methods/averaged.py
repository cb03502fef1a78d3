"""A network whose weights are averages of another one's over steps, and which says more than that one in between.

Tarvainen and Valpola, *Mean teachers are better role models* (NeurIPS 2017).  After each step

    theta' = a theta' + (1 - a) theta,

for the running averages of BatchNorm as well.  At first, where this is more, the mean over all steps: initial weights
leave no trace.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowland.trainers.errors import RecipeError

_PREFIX = "average."


class WeightAverage:
    """The averages, as a network; the same on every rank if the other's weights are.

    Args:
        network: of the other one's shape, in fp32; becomes the average.
        decay: a, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self._decay = network.eval().requires_grad_(False), decay

    @torch.no_grad()
    def move(self, network: nn.Module, steps: int) -> None:
        """Takes in the weights after so many steps, from 1."""
        theirs, ours = network.state_dict(), self._averages()
        news = [theirs[name].to(own.dtype) for name, own in ours.items()]
        torch._foreach_lerp_(list(ours.values()), news, 1 - min(self._decay, (steps - 1) / steps))

    def state(self) -> dict[str, Tensor]:
        """The averages, by the names of the weights."""
        return {_PREFIX + name: value for name, value in self._averages().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them; what else is in `state` is left alone.

        Raises:
            RecipeError: there are none in it.
        """
        if not any(name.startswith(_PREFIX) for name in state):
            raise RecipeError(
                "methods: average: this training was begun without averaged weights, which cannot be made up for: "
                "resume it with average: 0, or begin a new one"
            )
        for name, own in self._averages().items():
            own.copy_(state[_PREFIX + name])

    def _averages(self) -> dict[str, Tensor]:
        """All but BatchNorm's counters."""
        return {name: value for name, value in self.network.state_dict().items() if value.is_floating_point()}
