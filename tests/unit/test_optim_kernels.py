"""Sums and steps on lists of tensors: what they mean, and how kernels go through the lists."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowland.optim import TAM, Fragment, Segment, kernels
from lowland.optim.kernels import chunks
from lowland.optim.kernels.choice import alike, fits
from lowland.optim.lion import lion_
from lowland.optim.torque import adatamw_, tam_

CPU = torch.device("cpu")
STEPS = {
    "adatamw": (adatamw_, 2, {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}),
    "tam": (tam_, 1, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "lion": (lion_, 1, {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}),
}
SIZES = st.lists(st.integers(0, 5 * chunks.CHUNK), max_size=6)


def tensors(sizes: list[int], seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(device, dtype) for n in sizes]


@given(SIZES, st.data())
@settings(max_examples=50)
def test_chunks_cover_every_element_once(sizes: list[int], data: st.DataObject) -> None:
    on_boundary = [data.draw(st.booleans()) for _ in sizes]
    found = chunks.chunks_of(sizes, on_boundary, CPU)
    seen = [torch.zeros(n, dtype=torch.int64) for n in sizes]
    for rows, full in ((found.full, True), (found.rest, False)):
        for tensor, number in rows.tolist():
            part = seen[tensor][number * chunks.CHUNK :][: chunks.CHUNK]
            assert len(part) > 0
            assert full == (on_boundary[tensor] and len(part) == chunks.CHUNK)
            part += 1
    assert all((counts == 1).all() for counts in seen)


@given(SIZES)
@settings(max_examples=50)
def test_chunks_of_a_tensor_are_counted_one_after_the_other(sizes: list[int]) -> None:
    found = chunks.chunks_of(sizes, [index % 2 == 0 for index in range(len(sizes))], CPU)
    rows = [*found.full.tolist(), *found.rest.tolist()]
    slots = [int(found.firsts[tensor]) + number for tensor, number in rows]
    assert sorted(slots) == list(range(found.count))
    for tensor in range(len(sizes)):
        first, end = found.firsts[tensor : tensor + 2].tolist()
        assert {slot for slot, (owner, _) in zip(slots, rows, strict=True) if owner == tensor} == set(range(first, end))


def test_a_tensor_of_more_elements_than_32_bits_count_has_chunks_to_its_end() -> None:
    size = 2**31 + 5
    found = chunks.chunks_of([3, size], [True, True], CPU)
    tensor, number = found.rest[-1].tolist()
    assert (tensor, number * chunks.CHUNK, size - number * chunks.CHUNK) == (1, 2**31, 5)
    assert found.firsts.tolist() == [0, 1, 1 + 2**31 // chunks.CHUNK + 1]


def test_addresses_follow_tensors_that_move_and_a_shift_is_seen() -> None:
    base = torch.zeros(64)
    kept, moved = base[:8], base[16:24]
    assert chunks.addresses([kept, moved], CPU).tolist() == [base.data_ptr(), base.data_ptr() + 64]
    assert chunks.addresses([kept, base[32:40]], CPU).tolist() == [base.data_ptr(), base.data_ptr() + 128]
    assert chunks.aligned([[base, base[4:]], [base, base[8:]]]) == [base.data_ptr() % 16 == 0] * 2
    assert chunks.aligned([[base, base[4:]], [base, base[9:]]])[1] is False


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=6), st.integers(0, 3), st.data())
def test_a_cut_fragment_gives_each_segment_its_view(
    gaps: list[tuple[int, int]], padding: int, data: st.DataObject
) -> None:
    segments, end = [], 0
    for index, (gap, numel) in enumerate(gaps):
        segments.append(Segment(index, end + gap, numel, 0))
        end += gap + numel
    shuffled = data.draw(st.permutations(segments))
    flat = torch.arange(end + padding)
    pieces = Fragment(flat, tuple(shuffled), 0, ()).cut(flat)
    for segment, piece in zip(shuffled, pieces, strict=True):
        assert piece.reshape(-1).tolist() == list(range(segment.start, segment.start + segment.numel))
        assert piece.data_ptr() == flat.data_ptr() + segment.start * flat.itemsize


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_bf16_gradients_is_the_step_of_the_same_numbers_in_fp32(name: str) -> None:
    function, states, arguments = STEPS[name]
    outcomes = []
    for dtype in (torch.bfloat16, torch.float32):
        lists = [tensors([7, 300], seed) for seed in range(2 + states)]
        lists[1] = [x.bfloat16().to(dtype) for x in lists[1]]
        lists[3:] = [[x.abs() for x in some] for some in lists[3:]]
        step(function, lists, arguments)
        outcomes.append([lists[0], *lists[2:]])
    for left, right in zip(*outcomes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_list_is_that_of_its_pieces(name: str) -> None:
    function, states, arguments = STEPS[name]
    whole, cut = ([tensors([50], seed) for seed in range(2 + states)] for _ in range(2))
    for lists in (whole, cut):
        lists[3:] = [[x.abs() for x in some] for some in lists[3:]]
    step(function, whole, arguments)
    step(function, [list(some[0].split([1, 30, 19])) for some in cut], arguments)
    for left, right in zip(whole, cut, strict=True):
        assert torch.equal(left[0], right[0])


def test_sums_do_not_lose_small_numbers_behind_large_sums() -> None:
    """Of so many numbers a sum in fp32 alone is off by 1e-5."""
    a = 1 + tensors([1 << 22], 0)[0].abs()
    b = a.bfloat16()
    found = kernels.products([a, a[:3]], [b, b[:3]])
    for row, n in zip(found, (len(a), 3), strict=True):
        left, right = a[:n].double(), b[:n].double()
        exact = torch.stack([left @ left, left @ right, right @ right])
        assert torch.allclose(row, exact, rtol=1e-6, atol=0)
    assert torch.equal(kernels.squares([b, b[:3]]), found[:, 2])


def test_what_is_not_on_a_gpu_keeps_to_torch() -> None:
    assert not fits([[torch.zeros(3)]])
    assert not fits([[]])


def test_kernels_go_side_by_side_through_what_has_one_order_in_memory() -> None:
    plain, last = torch.zeros(3, 4, 5, 5), torch.zeros(3, 4, 5, 5).to(memory_format=torch.channels_last)
    assert alike([plain, plain])
    assert alike([last, last])
    assert not alike([plain, last])
    assert not alike([last[:, :2], last[:, :2]])
    assert not alike([torch.zeros(4, 6).t()])
    pointwise = torch.zeros(3, 4, 1, 1)
    assert alike([pointwise, pointwise.to(memory_format=torch.channels_last)])


def test_state_is_in_the_order_of_its_weight() -> None:
    last = torch.nn.Parameter(torch.zeros(3, 4, 5, 5).to(memory_format=torch.channels_last))
    last.grad = torch.ones_like(last)
    optimizer = TAM([last], lr=0.1)
    optimizer.step()
    assert alike([last, last.grad, optimizer.state[last]["exp_avg"]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_is_what_its_step_means(name: str, dtype: torch.dtype) -> None:
    function, states, arguments = STEPS[name]
    sizes = [1, 127, 0, chunks.CHUNK, chunks.CHUNK + 1, 3 * chunks.CHUNK]
    outcomes = []
    for chosen in (function, function.__wrapped__):  # type: ignore[attr-defined]
        lists = [tensors(sizes, seed, device="cuda") for seed in range(2 + states)]
        lists[1] = [x.to(dtype) for x in lists[1]]
        lists[3:] = [[x.abs() for x in some] for some in lists[3:]]
        assert fits(lists)
        step(chosen, lists, arguments)
        outcomes.append([lists[0], *lists[2:]])
    for left, right in zip(*outcomes, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a GPU")
def test_sums_by_kernels_are_exact_and_the_same_each_time() -> None:
    sizes = [1, 127, 0, chunks.CHUNK, chunks.CHUNK + 1, 3 * chunks.CHUNK]
    first, second = tensors(sizes, 0, device="cuda"), tensors(sizes, 1, torch.bfloat16, "cuda")
    found = kernels.products(first, second)
    exact = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    wanted = torch.stack([torch.stack([a @ a, a @ b, b @ b]) for a, b in exact])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-2)
    assert torch.equal(found, kernels.products(first, second))


def step(function: object, lists: list[list[Tensor]], arguments: dict[str, object]) -> None:
    dampings = [] if "betas" in arguments and "eps" not in arguments else [torch.full((len(lists[0]),), 0.7)]
    function(*lists, *(x.to(lists[0][0].device) for x in dampings), **arguments)  # type: ignore[operator]


@pytest.mark.parametrize("module", ["triton_steps", "triton_sums"])
def test_no_kernel_names_an_argument_as_tritons_launcher_names_its_own(module: str) -> None:
    """Such an argument is silently replaced by the launcher's local of that name, which fails on GPUs alone."""
    tree = ast.parse((Path(kernels.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    started = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.decorator_list]
    assert started
    for function in started:
        assert not {argument.arg for argument in function.args.args} & {"params", "specialization", "options"}
