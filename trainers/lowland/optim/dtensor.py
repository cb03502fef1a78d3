"""FSDP2's parameters, through torch's public DTensor: each rank holds rows of every tensor."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from lowland.optim.layout import Fragment, Layout, Parameter, Segment, local
from lowland.optim.ranks import Ranks


def dtensor_layout(groups: Sequence[Sequence[tuple[str, Tensor]]]) -> Layout | None:
    """The layout of sharded parameters, groups of (name, tensor); None if none of them is a DTensor.

    Raises:
        ValueError: some are DTensors and some are not, or they are not sharded by rows over one and the same mesh.
    """
    named = [(name, tensor, group) for group, members in enumerate(groups) for name, tensor in members]
    if not any(hasattr(tensor, "device_mesh") for _, tensor, _ in named):
        return None
    parameters, fragments = [], []
    process_group: dist.ProcessGroup | None = None
    for index, (name, tensor, group) in enumerate(named):
        shard, process_group = _rows(name, tensor, process_group)
        parameters.append(Parameter(name, tuple(tensor.shape), group))
        segments = (Segment(index, 0, shard[1], shard[0]),) if shard[1] else ()
        fragments.append(Fragment(tensor, segments, group, (index,)))
    device = local(fragments[0].tensor).device
    return Layout(tuple(parameters), tuple(fragments), Ranks(process_group, device))


def _rows(name: str, tensor: Tensor, group: dist.ProcessGroup | None) -> tuple[tuple[int, int], dist.ProcessGroup]:
    """First element and number of elements of this rank's rows, and the ranks that hold the others."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        raise ValueError(f"{name} is not sharded, and others are: put every parameter under one fully_shard")
    sharded = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if len(sharded) != 1 or tensor.placements[sharded[0]] != Shard(0):
        raise ValueError(f"{name} lies as {tensor.placements}: only rows over one mesh dimension are known (Shard(0))")
    mine = tensor.device_mesh.get_group(sharded[0])
    if group is not None and mine != group:
        raise ValueError(f"{name} is sharded over other ranks than the parameters before it")
    rank, size = dist.get_rank(mine), dist.get_world_size(mine)
    rows = tensor.shape[0]
    part = -(-rows // size)
    width = tensor.numel() // rows if rows else 0
    first = min(rank * part, rows)
    return (first * width, (min(first + part, rows) - first) * width), mine
