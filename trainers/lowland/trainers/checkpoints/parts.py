"""One rank's part of a checkpoint: pieces of parameters by name and offset, in safetensors.

Keys are `piece|<state>|<offset>|<parameter>`, `scalar|<state>||<parameter>`, `owned|<state>||<parameter>` (state of
a whole parameter that one rank keeps; `number|...` if it is a Python number), `buffer|||<buffer>` (alike on all ranks,
written by the first) and `rng|<generator>||`.
A reader asks for any range of a parameter and is served from whichever parts hold it, so that world
size and ZeRO stage may differ from the writer's.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowland.trainers.engines import StatePiece
from lowland.trainers.errors import DataError

Owned = Mapping[str, Mapping[str, Tensor | float]]
"""By parameter and state: what a rank keeps of whole parameters."""


def write_part(
    path: Path,
    pieces: Iterable[StatePiece],
    owned: Owned,
    rng: dict[str, Tensor],
    buffers: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Writes a rank's pieces, the whole parameters' state that it keeps, its generators, and buffers of the model."""
    tensors: dict[str, Tensor] = {f"rng|{name}||": state for name, state in rng.items()}
    for piece in pieces:
        for key, tensor in piece.tensors.items():
            copy = tensor.detach().reshape(-1).to("cpu", copy=True)
            tensors[f"piece|{key}|{piece.segment.offset}|{piece.name}"] = copy
        for key, tensor in piece.scalars.items():
            tensors[f"scalar|{key}||{piece.name}"] = tensor.detach().to("cpu", copy=True)
    for name, states in owned.items():
        for key, value in states.items():
            if isinstance(value, Tensor):
                tensors[f"owned|{key}||{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                tensors[f"number|{key}||{name}"] = torch.tensor(value, dtype=_number_type(value))
    for name, buffer in buffers:
        tensors[f"buffer|||{name}"] = buffer.detach().to("cpu", copy=True).contiguous()
    save_file(tensors, path)


def _number_type(value: float) -> torch.dtype:
    return torch.float64 if isinstance(value, float) else torch.int64


@dataclass(frozen=True)
class _Range:
    """Elements of a parameter's state in one file."""

    offset: int
    numel: int
    file: Any
    key: str


GO_ON = "go on with that one, or start anew under another name"
_OTHER = f"it was written by another model or optimizer; {GO_ON}"


class PartReader:
    """All parts of a checkpoint, memory-mapped, as whole parameters; a context manager."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stack = ExitStack()
        self._pieces: dict[str, dict[str, list[_Range]]] = {}
        self._scalars: dict[str, dict[str, tuple[Any, str]]] = {}
        self._owned: dict[str, dict[str, tuple[Any, str]]] = {}
        self._buffers: dict[str, tuple[Any, str]] = {}
        for path in paths:
            self._index(self._stack.enter_context(safe_open(path, framework="pt")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _index(self, file: Any) -> None:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, state, offset, name = key.split("|", 3)
            if kind == "piece":
                numel = file.get_slice(key).get_shape()[0]
                ranges = self._pieces.setdefault(name, {}).setdefault(state, [])
                ranges.append(_Range(int(offset), numel, file, key))
            elif kind == "scalar":
                self._scalars.setdefault(name, {})[state] = (file, key)
            elif kind in ("owned", "number"):
                self._owned.setdefault(name, {})[state] = (file, key)
            elif kind == "buffer":
                self._buffers[name] = (file, key)

    def owned(self, name: str) -> dict[str, Tensor | float]:
        """The state of a whole parameter that one rank kept; empty if none did."""
        found: dict[str, Tensor | float] = {}
        for state, (file, key) in self._owned.get(name, {}).items():
            value: Tensor = file.get_tensor(key)
            found[state] = value.item() if key.startswith("number|") else value
        return found

    def load_buffers(self, buffers: Iterable[tuple[str, Tensor]]) -> None:
        """Fills the buffers of a model.

        Raises:
            DataError: one is not here, or of another shape.
        """
        for name, buffer in buffers:
            file, key = self._buffers.get(name, (None, ""))
            found = file.get_tensor(key) if file is not None else None
            if found is None or found.shape != buffer.shape:
                here = "missing" if found is None else f"of the shape {list(found.shape)}"
                raise DataError(f"the buffer {name} is {here}: {_OTHER}")
            buffer.copy_(found)

    def check_parameters(self, names: set[str]) -> None:
        """Compares the parameters held with those of a model.

        Raises:
            DataError: one is missing here or there.
        """
        for missing, where in ((names - self._pieces.keys(), "checkpoint"), (self._pieces.keys() - names, "model")):
            if missing:
                raise DataError(f"the {where} has no parameter {min(missing)}: {_OTHER}")

    def load(self, piece: StatePiece) -> None:
        """Fills a piece's tensors and scalars.

        Raises:
            DataError: the parameter has another size here, or an optimizer kept other state.
        """
        ranges, scalars = self._pieces.get(piece.name, {}), self._scalars.get(piece.name, {})
        held, kept = {*ranges, *scalars}, {*piece.tensors, *piece.scalars}
        if held != kept:
            raise DataError(f"{piece.name} has {_listed(held)} here, but {_listed(kept)} in this run: {_OTHER}")
        for state, tensor in piece.tensors.items():
            numel = sum(entry.numel for entry in ranges[state])
            if numel != piece.numel:
                raise DataError(f"{piece.name} has {numel} elements here, but {piece.numel} in this run: {_OTHER}")
            # With channels last, memory is in another order than the file.
            flat = tensor.view(-1) if tensor.is_contiguous() else tensor.new_empty(tensor.numel())
            _fill(ranges[state], piece.segment.offset, flat)
            if not tensor.is_contiguous():
                tensor.copy_(flat.view(tensor.shape))
        for state, scalar in piece.scalars.items():
            file, key = scalars[state]
            scalar.copy_(file.get_tensor(key))


def _fill(ranges: list[_Range], start: int, into: Tensor) -> None:
    for entry in ranges:
        first = max(start, entry.offset)
        end = min(start + into.numel(), entry.offset + entry.numel)
        if first < end:
            source = entry.file.get_slice(entry.key)[first - entry.offset : end - entry.offset]
            into[first - start : end - start].copy_(source)


def read_rng(path: Path) -> dict[str, Tensor]:
    """The generators' states in a rank's part."""
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith("rng|")]  # noqa: SIM118 - not a mapping
        return {key.split("|")[1]: file.get_tensor(key) for key in keys}


def part_name(rank: int) -> str:
    """The file name of a rank's part."""
    return f"rank-{rank:05d}.safetensors"


def _listed(states: set[str]) -> str:
    return ", ".join(sorted(states)) or "nothing"


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's random number generators."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Restores `generator_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
