"""Where DeepSpeed keeps masters, gradients and weights: every private attribute is read here.

DeepSpeed hands an optimizer flat fragments without saying what is in them.  This module rebuilds
that from the wrappers' own tables, and `verify` holds the result against the live weights, so that
a layout this code does not know stops the run instead of training something else.

What the fragments are, by wrapper (DeepSpeed 0.19):

    stage 0, fp32   no wrapper: the model's parameters themselves
    stage 0, bf16   FP16_UnfusedOptimizer: an fp32 master per parameter
    stage 1 and 2   DeepSpeedZeroOptimizer: this rank's contiguous part of all parameters of a group, in order
    stage 1, bf16 with fp32 gradients: BF16_Optimizer, the same parts under other names
    stage 3         a part of every parameter of a sub-group; the end of a part may be uninitialised padding
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.optim import Fragment, Gradients, Layout, Parameter, Ranks, Segment


class UnknownLayoutError(RuntimeError):
    """DeepSpeed keeps its state in a way this version of lowland does not know."""


class ZeroLayout:
    """The fragments of a DeepSpeed engine, their gradients and their low-precision weights."""

    def __init__(self, engine: Any, parameters: Sequence[Parameter]) -> None:
        self._engine, self._zero = engine, engine.optimizer
        self._device = engine.device
        named = dict(engine.module.named_parameters())
        self._params = [named[parameter.name] for parameter in parameters]
        self._index = {id(p): index for index, p in enumerate(self._params)}
        self._stage: int = engine.zero_optimization_stage()
        fragments = tuple(self._fragments(engine))
        # The ranks' own device: a vector of offloaded state hops to the accelerator, where the process group works.
        ranks = Ranks(None, self._device) if self._stage else None
        self.layout = Layout(tuple(parameters), fragments, ranks, by_group=self._stage > 0)
        self.verify()

    def gradients(self) -> Gradients:
        """Each segment's averaged gradient between the last backward and the step; unscaled, unclipped."""
        zero = self._zero
        if self._stage == 0:
            yield from self._stage0_gradients()
        elif self._offloaded:
            if hasattr(zero, "_wait_for_offload_copies"):
                zero._wait_for_offload_copies()
            yield from self.layout.gradients()
        elif hasattr(zero, "fp32_groups_gradient_flat_partition"):
            yield from self._flat_gradients(zero.fp32_groups_gradient_flat_partition)
        else:
            yield from self._listed_gradients()

    def masters_changed(self) -> None:
        """Copies the masters into the model's weights, as the end of DeepSpeed's own step does."""
        zero = self._zero
        if self.masters_are_weights:
            return
        if self._stage == 0:
            for low, master in zip(self._stage0_params(), self.layout.fragments, strict=True):
                low.data.copy_(master.tensor.data)
        elif self._stage == 3:
            zero._partition_all_parameters()
            for index in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(index)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        else:
            zero.update_lp_params()

    @property
    def masters_are_weights(self) -> bool:
        """Whether the model computes with the masters themselves, so that nothing can be shown to it beside them."""
        return self._stage == 0 and not getattr(self._zero, "fp32_groups", None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        found: torch.dtype = self._params[0].dtype
        return found

    def gradients_changed(self) -> None:
        """Takes anew the norms that DeepSpeed took of offloaded gradients while they came in."""
        if self._offloaded:
            for segment, _, gradient in self.layout.gradients():
                key = self._zero.get_param_id(self._params[segment.parameter])
                self._zero.norm_for_param_grads[key] = gradient.double().norm()

    def discard_gradients(self) -> None:
        """Forgets what was accumulated since the last step, so that the same batch can be evaluated again."""
        zero = self._zero
        self._engine.zero_grad()
        if self._stage == 0:
            for fragment in self.layout.fragments:
                fragment.tensor.grad = None
            for param in self._params:
                param.grad = None
            return
        if self._offloaded and hasattr(zero, "_wait_for_offload_copies"):
            zero._wait_for_offload_copies()
        zero.zero_grad()
        if self._stage == 3:
            zero.averaged_gradients = {}
            if hasattr(zero, "_offload_boundary_param_ids"):
                zero._offload_boundary_param_ids = set()
        elif hasattr(zero, "averaged_gradients"):
            for index in zero.averaged_gradients:
                zero.averaged_gradients[index] = None
                if index in getattr(zero, "all_grad_tensors", {}):
                    zero.all_grad_tensors[index] = None
            zero.micro_step_id = -1
            if hasattr(zero, "_offload_accumulated_param_ids"):
                zero._offload_accumulated_param_ids = set()
        if self._offloaded:
            zero.reset_cpu_buffers()

    def verify(self) -> None:
        """Compares every segment with the live weights, and that all segments cover every parameter once.

        Raises:
            UnknownLayoutError: they differ; training on would compute something else.
        """
        # Summed over the ranks, so that all of them refuse together: elements held, and elements that differ.
        counts = torch.zeros(len(self.layout.parameters), 2, dtype=torch.float64)
        for fragment in self.layout.fragments:
            for segment in fragment.segments:
                live = self._live_weight(segment)
                held = segment.of(fragment.tensor.data).reshape(-1).to(live)
                counts[segment.parameter] += torch.tensor([segment.numel, int((held != live).sum())])
        if self.layout.ranks is not None:
            self.layout.ranks.add(counts)
        differing = []
        for parameter, (count, different) in zip(self.layout.parameters, counts.tolist(), strict=True):
            if count != parameter.numel:
                differing.append(f"{parameter.name} ({count:.0f} of {parameter.numel} elements)")
            elif different:
                differing.append(f"{parameter.name} ({different:.0f} elements are others)")
        if differing:
            raise UnknownLayoutError(
                f"the layout of {type(self._zero).__name__} does not match the model's weights in: "
                f"{', '.join(differing[:5])}; this DeepSpeed version needs a new lowland"
            )

    def _fragments(self, engine: Any) -> Iterator[Fragment]:
        zero = self._zero
        if self._stage == 0:
            yield from self._stage0_fragments(engine)
        elif hasattr(zero, "fp32_partitioned_groups_flat"):
            yield from self._stage3_fragments()
        elif hasattr(zero, "single_partition_of_fp32_groups"):
            yield from self._contiguous_fragments(
                zero.single_partition_of_fp32_groups,
                zero.round_robin_bit16_groups,
                zero.round_robin_bit16_offsets,
            )
        elif hasattr(zero, "fp32_groups_flat_partition"):
            yield from self._contiguous_fragments(zero.fp32_groups_flat_partition, zero.bf16_groups, None)
        else:
            raise UnknownLayoutError(f"DeepSpeed's {type(zero).__name__} is not known to lowland")

    def _stage0_fragments(self, engine: Any) -> Iterator[Fragment]:
        low = getattr(self._zero, "fp16_groups", None) or [group["params"] for group in engine.optimizer.param_groups]
        masters = getattr(self._zero, "fp32_groups", None) or low
        for group, (params, tensors) in enumerate(zip(low, masters, strict=True)):
            for param, tensor in zip(params, tensors, strict=True):
                index = self._index_of(param)
                yield Fragment(tensor, (Segment(index, 0, tensor.numel(), 0),), group, (index,))

    def _stage0_params(self) -> list[Tensor]:
        """The model's parameter of each fragment."""
        return [self._params[fragment.segments[0].parameter] for fragment in self.layout.fragments]

    def _contiguous_fragments(
        self,
        flats: Sequence[Tensor],
        groups: Sequence[Sequence[Tensor]],
        offsets: Sequence[Sequence[int]] | None,
    ) -> Iterator[Fragment]:
        for group, (flat, params) in enumerate(zip(flats, groups, strict=True)):
            part = flat.numel()
            low = part * dist.get_rank(self._zero.real_dp_process_group[group])
            starts = offsets[group] if offsets is not None else _cumulative(params)
            segments = []
            for param, start in zip(params, starts, strict=True):
                first, end = max(start, low), min(start + param.numel(), low + part)
                if first < end:
                    segments.append(Segment(self._index_of(param), first - low, end - first, first - start))
            yield Fragment(flat, tuple(segments), group, tuple(map(self._index_of, params)))

    def _stage3_fragments(self) -> Iterator[Fragment]:
        zero = self._zero
        for index, (params, flat) in enumerate(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)):
            rank = dist.get_rank(zero._get_sub_group_process_group(index))
            segments, start = [], 0
            for param in params:
                part = param.partition_numel()
                valid = max(0, min(part, param.ds_numel - rank * part))
                if valid:
                    segments.append(Segment(self._index_of(param), start, valid, rank * part))
                start += part
            group = zero.sub_group_to_group_id[index]
            yield Fragment(flat, tuple(segments), group, tuple(map(self._index_of, params)))

    def _stage0_gradients(self) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        for fragment, param in zip(self.layout.fragments, self._stage0_params(), strict=True):
            if param.grad is not None:
                yield fragment.segments[0], fragment.tensor, param.grad

    def _flat_gradients(self, flats: Sequence[Tensor]) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        for fragment, flat in zip(self.layout.fragments, flats, strict=True):
            for segment in fragment.segments:
                yield segment, fragment.tensor, segment.of(flat)

    def _listed_gradients(self) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        """From lists of tensors that, one after the other, stand for the fragment."""
        for index, fragment in enumerate(self.layout.fragments):
            by_start, start = {}, 0
            for tensor in self._zero.averaged_gradients[index]:
                by_start[start] = tensor.reshape(-1)
                start += tensor.numel()
            for segment in fragment.segments:
                yield segment, fragment.tensor, by_start[segment.start][: segment.numel]

    def _live_weight(self, segment: Segment) -> Tensor:
        """The segment's elements in the model's own weights, 1-D."""
        param = self._params[segment.parameter]
        if self._stage == 3:
            local: Tensor = param.ds_tensor.data.view(-1)
            return local[: segment.numel]
        whole: Tensor = param.data.reshape(-1)
        return whole.narrow(0, segment.offset, segment.numel)

    @property
    def _offloaded(self) -> bool:
        return bool(getattr(self._zero, "cpu_offload", False) or getattr(self._zero, "offload_optimizer", False))

    def _index_of(self, param: Tensor) -> int:
        return self._index[id(param)]


def parameters_of(engine: Any) -> list[Parameter]:
    """What an engine trains, by the groups of its client's optimizer."""
    zero, names = engine.optimizer, {id(p): name for name, p in engine.module.named_parameters()}
    groups: Iterable[tuple[int, Sequence[Tensor]]]
    if hasattr(zero, "sub_group_to_group_id"):
        groups = ((zero.sub_group_to_group_id[index], params) for index, params in enumerate(zero.fp16_groups))
    elif hasattr(zero, "round_robin_bit16_groups"):
        groups = enumerate(zero.round_robin_bit16_groups)
    elif hasattr(zero, "bf16_groups"):
        groups = enumerate(zero.bf16_groups)
    else:
        groups = enumerate(getattr(zero, "fp16_groups", None) or [group["params"] for group in zero.param_groups])
    return [
        Parameter(names[id(p)], tuple(getattr(p, "ds_shape", p.shape)), group)
        for group, params in groups
        for p in params
    ]


def _cumulative(params: Sequence[Tensor]) -> list[int]:
    return list(accumulate((p.numel() for p in params[:-1]), initial=0))
