"""Triton kernels of optimizer steps against what they mean in torch, on sizes that a table of chunks can get wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowland.optim import kernels
from lowland.optim.kernels.choice import fits
from lowland.optim.lion import lion_
from lowland.optim.torque import adatamw_, tam_

SIZES = (1, 127, 4096, 16384, 16385, 0, 1_000_003)
HUGE = 2**31 + 5
"""Elements; an index of 32 bits does not reach the end."""
PIECE = 1 << 27
"""Elements compared at a time."""
LR, DECAY = 1e-3, 0.1
SUM_TOLERANCE = 1e-6
"""Chunks are summed in fp32."""
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7}
"""A few roundings in fp32; one rounding to bf16."""


@dataclass(frozen=True)
class Step:
    """One step to compare: on parameters, gradients and so many states."""

    states: int
    run: Callable[[Callable[..., None], list[list[Tensor]], Tensor], None]
    function: Callable[..., None]


STEPS = {
    "adatamw": Step(2, lambda f, x, d: f(*x, d, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY), adatamw_),
    "tam": Step(1, lambda f, x, d: f(*x, d, lr=LR, momentum=0.9, weight_decay=DECAY), tam_),
    "lion": Step(1, lambda f, x, d: f(*x, lr=LR, betas=(0.9, 0.99), weight_decay=DECAY), lion_),
}


def check(device: torch.device) -> Iterator[tuple[str, float, bool]]:
    """What was compared, the largest error, and whether that is rounding alone."""
    torch.manual_seed(0)
    for name in STEPS:
        for param, grad in (
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.bfloat16, torch.bfloat16),
        ):
            label = f"{name}, {_short(param)} weights, {_short(grad)} gradients"
            yield label, *_small(name, param, grad, device)
        yield f"{name}, {HUGE} elements, bf16 gradient", *_huge(name, device)
    for grad in (torch.float32, torch.bfloat16):
        yield from _sums(grad, device)
    yield from _huge_sums(device)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _small(name: str, param: torch.dtype, grad: torch.dtype, device: torch.device) -> tuple[float, bool]:
    """Lists of tensors, every third of them not on a boundary of 16 bytes."""
    step = STEPS[name]
    types = [param, grad, *[torch.float32] * step.states]
    lists = [[_random(n, dtype, device, shift=i % 3 == 1) for i, n in enumerate(SIZES)] for dtype in types]
    if step.states == 2:
        lists[3] = [x.abs_() for x in lists[3]]
    dampings = torch.rand(len(SIZES), device=device) + 0.5
    assert fits(lists), "Triton does not run here"
    before = [[x.clone() for x in tensors] for tensors in lists]
    expected = [[x.clone() for x in tensors] for tensors in lists]
    step.run(step.function, lists, dampings)
    step.run(_torch(step.function), expected, dampings)
    worst, good = 0.0, True
    for kind, (found, wanted) in enumerate(zip(lists, expected, strict=True)):
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            if a.numel() and kind != 1:
                error = _error(a, b, _tie(name, before, i))
                worst, good = max(worst, error), good and error <= TOLERANCE[a.dtype]
    return worst, good


def _huge(name: str, device: torch.device) -> tuple[float, bool]:
    step = STEPS[name]
    kinds = [torch.float32, torch.bfloat16, *[torch.float32] * step.states]
    whole = [torch.empty(HUGE, dtype=dtype, device=device) for dtype in kinds]
    starts = range(0, HUGE, PIECE)
    for start in starts:
        for tensor, piece in zip(whole, _pieces(kinds, start, device), strict=True):
            tensor[start : start + PIECE] = piece
    dampings = torch.tensor([0.7], device=device)
    step.run(step.function, [[x] for x in whole], dampings)
    worst = 0.0
    for start in starts:
        pieces = _pieces(kinds, start, device)
        before = [[x.clone()] for x in pieces]
        step.run(_torch(step.function), [[x] for x in pieces], dampings)
        tie = _tie(name, before, 0)
        for kind, (tensor, piece) in enumerate(zip(whole, pieces, strict=True)):
            if kind != 1:
                worst = max(worst, _error(tensor[start : start + PIECE], piece, tie))
    return worst, worst <= TOLERANCE[torch.float32]


def _sums(grad: torch.dtype, device: torch.device) -> Iterator[tuple[str, float, bool]]:
    first = [_random(n, torch.float32, device, shift=i % 3 == 1) for i, n in enumerate(SIZES)]
    second = [_random(n, grad, device, shift=i % 3 == 1) for i, n in enumerate(SIZES)]
    exact = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    wanted = torch.stack([torch.stack([a @ a, a @ b, b @ b]) for a, b in exact])
    yield from _compared(f"sums, fp32 and {_short(grad)}", first, second, wanted)


def _huge_sums(device: torch.device) -> Iterator[tuple[str, float, bool]]:
    kinds = [torch.float32, torch.bfloat16]
    first, second = (torch.empty(HUGE, dtype=dtype, device=device) for dtype in kinds)
    wanted = torch.zeros(1, 3, dtype=torch.float64, device=device)
    for start in range(0, HUGE, PIECE):
        a, b = _pieces(kinds, start, device)
        first[start : start + PIECE], second[start : start + PIECE] = a, b
        a, b = a.double(), b.double()
        wanted += torch.stack([a @ a, a @ b, b @ b])
    yield from _compared(f"sums, {HUGE} elements, fp32 and bf16", [first], [second], wanted)


def _compared(
    label: str, first: list[Tensor], second: list[Tensor], wanted: Tensor
) -> Iterator[tuple[str, float, bool]]:
    """Sums against those in fp64, relative to the norms since a dot product may vanish; and against a second call."""
    norms = torch.stack([wanted[:, 0], (wanted[:, 0] * wanted[:, 2]).sqrt(), wanted[:, 2]], dim=1).clamp(min=1e-30)
    found = kernels.products(first, second)
    error = float(((found - wanted).abs() / norms).max())
    yield f"{label}: products", error, error <= SUM_TOLERANCE
    error = float(((kernels.squares(second) - wanted[:, 2]).abs() / norms[:, 2]).max())
    yield f"{label}: squares", error, error <= SUM_TOLERANCE
    error = float(((kernels.products(first, second) - found).abs() / norms).max())
    yield f"{label}: a second call, same bits", error, error == 0


def _torch(function: Callable[..., None]) -> Callable[..., None]:
    meaning: Callable[..., None] = function.__wrapped__  # type: ignore[attr-defined]
    return meaning


def _random(n: int, dtype: torch.dtype, device: torch.device, *, shift: bool) -> Tensor:
    return torch.randn(n + 1, device=device).to(dtype)[int(shift) : n + int(shift)]


def _pieces(kinds: list[torch.dtype], start: int, device: torch.device) -> list[Tensor]:
    """The same numbers for the same start."""
    generator = torch.Generator(device).manual_seed(start)
    n = min(PIECE, HUGE - start)
    pieces = [torch.randn(n, device=device, generator=generator).to(dtype) for dtype in kinds]
    return [*pieces[:3], *(x.abs_() for x in pieces[3:])]


def _tie(name: str, before: list[list[Tensor]], index: int) -> Tensor | None:
    """Where Lion's sign hangs on a rounding."""
    if name != "lion":
        return None
    gradient, momentum = before[1][index].float(), before[2][index]
    return (0.9 * momentum + 0.1 * gradient).abs() < 1e-6 * (momentum.abs() + gradient.abs())


def _error(found: Tensor, wanted: Tensor, left_out: Tensor | None) -> float:
    """The largest difference, relative to the element or, where that is small, to their root mean square."""
    difference = (found.float() - wanted.float()).abs_().nan_to_num_(nan=float("inf"))
    if left_out is not None:
        difference.masked_fill_(left_out, 0)
    scale = wanted.float().square().mean().sqrt()
    return float((difference / wanted.float().abs().clamp(min=scale)).max())
