"""How much the rest of a transformer changes if a head or a neuron is taken out (OPTIN; Khaki and Plataniotis, 2024).

Tokens [B, T, d] behind each block are compared by their Gram matrix: the inner products of all pairs of tokens of the
batch, each of length 1.  With G_l of the whole network and G'_l without unit j of block b, the unit's effect is

    sum over l >= b of |G_l - G'_l|^2    and    KL(p | p')

of the predictions; the first is what the paper calls the trajectory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Trajectory:
    """A batch's way through a network, in evaluation mode.

    Args:
        forward: logits [B, K] of inputs [B, ...].
        blocks: of the network, one after the other; each is given tokens [B, T, d] first and makes such of them.
        inputs: [N, ...].
        tokens: of the batch that are compared, drawn at random; all if there are fewer.  Memory: its square for each
            block, and for each copy of the batch.
        seed: of the draw.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        blocks: Sequence[nn.Module],
        inputs: Tensor,
        *,
        tokens: int = 768,
        seed: int = 0,
    ) -> None:
        self._forward, self._blocks, self._inputs = forward, tuple(blocks), inputs
        self._given: list[Tensor] = []
        made: list[Tensor] = []
        with torch.no_grad(), _watching(self._blocks, self._given, made):
            self._predictions = functional.log_softmax(forward(inputs).float(), dim=-1)
        count = made[0].shape[0] * made[0].shape[1]
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:tokens]
        self._drawn = drawn.to(made[0].device)
        self._grams = [self._gram(each, 1) for each in made]

    @torch.no_grad()
    def without(self, block: int, consumer: nn.Module, kept: Tensor) -> Tensor:
        """The effects of removing units, each alone.

        The blocks before theirs are not computed again: what they gave is put in at theirs, in copies.

        Args:
            block: that they are in, counted from 0.
            consumer: the layer of it whose inputs they are.
            kept: bool [units, inputs of the layer], False where it is the unit's.

        Returns:
            float64 [units, 2]: of the trajectory, and of the predictions in nats, summed over the batch.
        """
        copies = len(kept)
        changes = torch.zeros(copies, dtype=torch.float64, device=kept.device)

        def put_in(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self._given[block].repeat(copies, 1, 1), *arguments[1:])

        def remove(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs = arguments[0].unflatten(0, (copies, -1))
            return ((inputs * kept[:, None, None]).flatten(0, 1), *arguments[1:])

        def compare(index: int, module: nn.Module, arguments: object, made: Tensor) -> None:
            changes.add_((self._gram(made, copies) - self._grams[index]).square().sum((1, 2), dtype=torch.float64))

        hooks = [self._blocks[block].register_forward_pre_hook(put_in), consumer.register_forward_pre_hook(remove)]
        hooks += [
            self._blocks[index].register_forward_hook(partial(compare, index))
            for index in range(block, len(self._blocks))
        ]
        try:
            logits = self._forward(self._inputs[:1]).float().unflatten(0, (copies, -1))
        finally:
            for hook in hooks:
                hook.remove()
        predictions = functional.log_softmax(logits, dim=-1)
        divergence = self._predictions.exp() * (self._predictions - predictions)
        return torch.stack([changes, divergence.flatten(1).sum(1, dtype=torch.float64)], dim=1)

    def _gram(self, made: Tensor, copies: int) -> Tensor:
        """float32 [copies, tokens, tokens]."""
        tokens = made.float().flatten(0, 1).unflatten(0, (copies, -1))[:, self._drawn]
        tokens = functional.normalize(tokens, dim=-1)
        return tokens @ tokens.mT


@contextmanager
def _watching(blocks: Sequence[nn.Module], given: list[Tensor], made: list[Tensor]) -> Iterator[None]:
    def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        given.append(arguments[0])
        made.append(output)

    hooks = [block.register_forward_hook(watch) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def importance(effects: Tensor, balance: float) -> Tensor:
    """One number for each unit.

    Args:
        effects: [units, 2] as of `Trajectory.without`.
        balance: how many times as much the mean effect on the trajectory weighs as that on predictions.

    Returns:
        float64 [units], in units of the trajectory's.
    """
    means = effects.mean(0)
    factor = means[0] / (balance * means[1]) if means[1] > 0 else means[1]
    return effects[:, 0] + factor * effects[:, 1]
