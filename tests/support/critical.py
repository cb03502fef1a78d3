"""Critical Momenta and Critical Gradients as one writes them for a few whole tensors."""

import math

import torch
from torch import Tensor, nn

SHAPES = ((3, 2), (4,), (1,))


def parameters(generator: torch.Generator | None = None) -> list[nn.Parameter]:
    """Of several shapes."""
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients_of(seed: int, steps: int) -> list[list[Tensor]]:
    """Of unlike sizes, so that not all enter the buffer, and whole and single tensors rank differently."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(steps, len(SHAPES), generator=generator) + 0.2
    return [
        [s * torch.randn(shape, generator=generator) for s, shape in zip(row, SHAPES, strict=True)] for row in sizes
    ]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    """One step with these gradients."""
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = None if gradient is None else gradient.to(p.dtype).clone()
    optimizer.step()


class Plain:
    """The equations in float64, tensor by tensor."""

    def __init__(self, method: str, variant: str, priority: str, weights: list[Tensor]) -> None:
        self.method, self.variant, self.priority = method, variant, priority
        self.weights = [w.double() for w in weights]
        self.m, self.v = ([torch.zeros_like(w) for w in self.weights] for _ in range(2))
        self.buffers: list[list[Tensor]] = [[] for _ in weights]
        self.keys: list[list[float]] = [[] for _ in weights]
        self.t = 0

    def step(self, gradients: list[Tensor], *, lr: float, decay: float, kappa: float, size: int, beta: float) -> None:
        self.t += 1
        norms = [float(g.double().norm()) for g in gradients]
        whole = sum(norms) if self.priority == "tensor_norms" else math.sqrt(sum(n * n for n in norms))
        for i, gradient in enumerate(gradients):
            g = gradient.double()
            if self.variant == "adamw":
                self.weights[i] = self.weights[i] * (1 - lr * decay)
            else:
                g = g + decay * self.weights[i]
            past = sum(self.buffers[i]) / len(self.buffers[i]) * kappa if self.buffers[i] else torch.zeros_like(g)
            offered = self._move(i, g, past, lr)
            self._offer(i, offered, norms[i] if self.priority == "tensor" else whole, size, beta)

    def _move(self, i: int, g: Tensor, past: Tensor, lr: float) -> Tensor:
        corrections = (1 - 0.9**self.t, 1 - 0.99**self.t) if self.variant in ("adam", "adamw") else (1.0, 1.0)
        if self.method == "momenta":
            if self.t == 1:
                return g
            self.m[i] = 0.9 * self.m[i] + (1.0 if self.variant == "sgd" else 0.1) * g
            u = self.m[i] + past
        else:
            u = g + past
        self.v[i] = 0.99 * self.v[i] + 0.01 * u * u
        root = (self.v[i] / corrections[1]).sqrt() + 1e-8
        if self.method == "momenta":
            self.weights[i] = self.weights[i] - lr * (u if self.variant == "sgd" else u / corrections[0] / root)
            return self.m[i]
        added = {"sgd": u, "rmsprop": u / root}.get(self.variant, 0.1 * u)
        self.m[i] = 0.9 * self.m[i] + added
        moved = self.m[i] / corrections[0] / root if self.variant in ("adam", "adamw") else self.m[i]
        self.weights[i] = self.weights[i] - lr * moved
        return g

    def _offer(self, i: int, offered: Tensor, key: float, size: int, beta: float) -> None:
        buffer, keys = self.buffers[i], self.keys[i]
        if len(buffer) < size:
            buffer.append(offered)
            keys.append(key)
        elif key > min(keys):
            slot = keys.index(min(keys))
            buffer[slot], keys[slot] = offered, key
        self.keys[i] = [beta * k for k in keys]
