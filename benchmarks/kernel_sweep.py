"""How the kernels' sizes of blocks and chunks change their bandwidth on this GPU."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from lowland.optim import kernels
from lowland.optim.kernels import chunks
from lowland.optim.lion import lion_
from lowland.optim.torque import adatamw_, tam_

RUNS = 10


def sweep(shapes: list[tuple[int, ...]], device: torch.device) -> Iterator[dict[str, Any]]:
    """GB/s of every kernel by elements per block, warps and elements per chunk; the defaults come first."""
    from lowland.optim.kernels import triton_lists as lists

    weights, grads, momenta, seconds = ([torch.rand(shape, device=device) for shape in shapes] for _ in range(4))
    dampings = torch.ones(len(shapes), device=device)
    elements = sum(x.numel() for x in weights)
    betas = (0.9, 0.999)
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "adatamw": (
            28,
            lambda: adatamw_(
                weights, grads, momenta, seconds, dampings, lr=1e-4, betas=betas, eps=1e-8, weight_decay=0.1
            ),
        ),
        "tam": (20, lambda: tam_(weights, grads, momenta, dampings, lr=1e-4, momentum=0.9, weight_decay=0.1)),
        "lion": (20, lambda: lion_(weights, grads, momenta, lr=1e-4, betas=betas, weight_decay=0.1)),
        "sums": (8, lambda: kernels.products(momenta, grads)),
    }
    kept = lists.BLOCK, lists.WARPS, chunks.CHUNK
    others = [(block, warps, kept[2]) for block in (512, 1024, 2048, 4096) for warps in (4, 8, 16)]
    others += [(kept[0], kept[1], chunk) for chunk in (1 << 12, 1 << 13, 1 << 15, 1 << 16)]
    try:
        for setting in dict.fromkeys([kept, *others]):
            _use(lists, *setting)
            rates = {name: size * elements / _milliseconds(run) / 1e6 for name, (size, run) in runs.items()}
            yield dict(zip(("block", "warps", "chunk"), setting, strict=True)) | rates
    finally:
        _use(lists, *kept)


def _use(lists: Any, block: int, warps: int, chunk: int) -> None:
    lists.BLOCK, lists.WARPS = block, warps
    lists.CHUNK = chunks.CHUNK = chunk
    chunks._chunks.cache_clear()


def _milliseconds(run: Callable[[], Any]) -> float:
    for _ in range(2):
        run()
    readings = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        readings.append((begin, end))
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in readings)
