"""Where the Triton form of a function on lists of tensors takes the place of the torch form."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["fits", "fused"]

P = ParamSpec("P")
R = TypeVar("R")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fused(module: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives a function on lists of tensors its Triton form: the function of the same name in a module beside this one.

    What is decorated says in torch what is computed, and runs wherever Triton does not; it stays reachable as
    `__wrapped__`.  The lists of tensors are the first arguments, by position.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
            if not fits([argument for argument in args if isinstance(argument, list | tuple)]):
                return function(*args, **kwargs)
            faster: Callable[P, R] = getattr(import_module(f"{__package__}.{module}"), function.__name__)
            return faster(*args, **kwargs)

        return chosen

    return decorate


def fits(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether Triton kernels can go through these lists side by side."""
    if not lists[0] or not lists[0][0].is_cuda or not _runs(lists[0][0].device):
        return False
    device = lists[0][0].device
    known = all(x.device == device and x.dtype in DTYPES for tensors in lists for x in tensors)
    return known and all(alike(column) for column in zip(*lists, strict=True))


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape have the same elements in the order of memory, without gaps."""
    if all(x.is_contiguous() for x in tensors):
        return True
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors)


@lru_cache
def _runs(device: torch.device) -> bool:
    """Whether Triton works on a GPU: besides the package it needs a C compiler and a GPU it knows."""
    if find_spec("triton") is None:
        return False
    try:
        from lowland.optim.kernels.triton_sums import squares

        one = torch.ones(1, device=device)
        return squares([one]).item() == 1
    except Exception as error:
        warnings.warn(
            f"Triton kernels do not run on {device}, so optimizer steps go over memory several times: {error!r}",
            stacklevel=2,
        )
        return False
