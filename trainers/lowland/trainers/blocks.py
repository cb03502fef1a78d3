"""The repeated blocks of a deep network: what is compiled, and gathered, one at a time."""

from torch import nn


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The elements of the longest ModuleList: a transformer's layers; empty if there is no list."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return max((list(blocks) for blocks in lists), key=len, default=[])
