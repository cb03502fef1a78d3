"""Predictions against values worked out by hand, and jumps between the steps of any optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pretend import PretendRanks, cut, joined, piece_of, together
from torch import Tensor, nn

from lowland.optim import TAM, Nowcast
from lowland.optim.nino import ScalarNet, load_scalar_net, tensor_type
from lowland.optim.nowcast import geometric_change, horizons, linear_change

VALUES = st.lists(st.floats(-3, 3), min_size=1, max_size=5)


def past(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_lines_worked_out_by_hand() -> None:
    """Slope .24, mean .64."""
    trajectory = past(0, 0.5, 0.8, 0.9, 1)
    assert float(1 + linear_change(trajectory, 3)) == pytest.approx(1.72)
    assert float(1 + linear_change(trajectory, 3, from_last=False)) == pytest.approx(1.84)
    assert float(linear_change(trajectory, 0)) == 0
    assert float(1 + linear_change(trajectory, 0, from_last=False)) == pytest.approx(1.12)


@given(VALUES, VALUES, st.integers(2, 6), st.integers(1, 40))
def test_a_linear_trajectory_goes_on(start: list[float], slope: list[float], c: int, k: int) -> None:
    n = min(len(start), len(slope))
    w, s = torch.tensor(start[:n], dtype=torch.float64), torch.tensor(slope[:n], dtype=torch.float64)
    trajectory = [w + i * s for i in range(c)]
    for from_last in (True, False):
        assert torch.allclose(linear_change(trajectory, k, from_last=from_last), k * s, atol=1e-9)


@given(st.floats(-1, 1), VALUES, st.integers(1, 40))
def test_a_trajectory_that_shrinks_by_a_ratio_goes_on(ratio: float, step: list[float], k: int) -> None:
    d = torch.tensor(step, dtype=torch.float64)
    points = [torch.zeros_like(d)]
    for i in range(3 + k):
        points.append(points[-1] + d * ratio**i)
    assert torch.allclose(points[3] + geometric_change(points[:4], ratio, k), points[3 + k], atol=1e-9)


def test_horizons_fall_as_published() -> None:
    assert horizons(40, 10) == [40, 33, 26, 21, 16, 11, 8, 5, 3, 1]
    assert horizons(7, None) == [7]


class Moving(torch.optim.Optimizer):
    """Adds a given change at each step, times how many steps it has taken."""

    def __init__(self, params: Any, change: float) -> None:
        super().__init__(params, {"lr": 1.0})
        self.change = change

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad)


def run(optimizer: torch.optim.Optimizer, p: nn.Parameter, changes: list[float]) -> list[float]:
    found = []
    for change in changes:
        p.grad = torch.full_like(p, change)
        optimizer.step()
        found.append(float(p.detach().reshape(-1)[0]))
    return found


def test_a_jump_takes_the_place_of_every_period_th_step() -> None:
    """Snapshots before steps 2 and 4; slope 2 per snapshot; the fourth gradient is discarded."""
    p = nn.Parameter(torch.zeros(2))
    optimizer = Nowcast(Moving([p], 1.0), period=4, snapshots=2, horizon=3)
    assert run(optimizer, p, [1, 1, 1, 100]) == [1, 2, 3, 3 + 3 * 2]
    assert run(optimizer, p, [0.5, 0.5, 0.5, 100]) == [9.5, 10, 10.5, 10.5 + 3 * 1]


def test_the_horizon_falls_from_jump_to_jump_and_stays() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = Nowcast(Moving([p], 1.0), period=2, snapshots=2, horizon=4, jumps=2)
    assert run(optimizer, p, [1, 0] * 3) == [1, 1 + 4, 6, 6 + 1, 8, 8 + 1]
    assert optimizer.metrics() == {"jumps": 3}


@pytest.mark.parametrize("method", ["linear", "fit", "geometric", "network"])
def test_weights_that_do_not_move_stay(method: Any, tmp_path: Path) -> None:
    network = network_file(tmp_path, still=True) if method == "network" else None
    p, frozen = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))
    before, apart = p.detach().clone(), frozen.detach().clone()
    optimizer = Nowcast(Moving([p, frozen], 0.0), period=5, method=method, horizon=4, network=network)
    run(optimizer, p, [0.0] * 10)
    if method == "network":
        assert torch.allclose(p, before, atol=1e-4)
        assert torch.allclose(frozen, apart, atol=1e-4)
    else:
        assert torch.equal(p, before)
        assert torch.equal(frozen, apart)


def test_moments_and_cosines_are_those_from_before_the_jump() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(4) for _ in range(6)]
    p, q = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    jumping, plain = Nowcast(TAM([p], lr=0.1), period=4, snapshots=2), TAM([q], lr=0.1)
    for i, gradient in enumerate(gradients):
        p.grad = gradient
        jumping.step()
        if i == 3:
            moved = p.detach() - q.detach()
            continue
        q.grad = gradient
        plain.step()
    assert moved.norm() > 1e-2
    inner = jumping.base
    assert isinstance(inner, TAM)
    assert inner.cosines == plain.cosines
    assert torch.equal(inner.state[p]["exp_avg"], plain.state[q]["exp_avg"])
    assert torch.allclose(p - q, moved, atol=1e-6)


@pytest.mark.parametrize("offload", [False, True])
def test_state_dict_round_trip_between_snapshots(offload: bool) -> None:
    changes = [1.0, -0.5, 0.25, 2.0, 1.5, 0.5, 3.0, 1.0, 0.0]

    def make(p: nn.Parameter) -> Nowcast:
        return Nowcast(Moving([p], 1.0), period=6, snapshots=3, method="geometric", horizon=2, offload=offload)

    whole, before = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    expected = run(make(whole), whole, changes)
    for stop in range(1, 9):
        before = nn.Parameter(torch.zeros(2))
        first = make(before)
        run(first, before, changes[:stop])
        after = nn.Parameter(before.detach().clone())
        second = make(after)
        second.load_state_dict(first.state_dict())
        assert run(second, after, changes[stop:]) == expected[stop:]


def test_snapshots_keep_their_digits_beside_low_precision_weights() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Nowcast(Moving([p], 1.0), period=4, snapshots=2)
    run(optimizer, p, [0.1, 0.1, 0.1, 0.1])
    assert {t.dtype for t in optimizer.state[p].values()} == {torch.float32}


def network_file(folder: Path, *, hidden: int = 6, still: bool = False) -> Path:
    """A file as NiNo's are, of random weights; a still one predicts no change."""
    torch.manual_seed(5)
    net = ScalarNet(5, hidden, 40, 15)
    weights = {name: torch.randn_like(tensor) / 3 for name, tensor in net.state_dict().items()}
    if still:
        weights |= {name: torch.zeros_like(weights[name]) for name in weights if name.startswith("edge_mlp.fc.6")}
    path = folder / "net.pt"
    torch.save({"state_dict": weights, "model_args": {"gnn": False, "hid": hidden}, "step": 7}, path)
    return path


def test_the_network_written_out(tmp_path: Path) -> None:
    path = network_file(tmp_path)
    w = torch.load(path)["state_dict"]
    snapshots = [torch.randn(4, 3) * 0.1 + 1 for _ in range(5)]
    mean, deviation = torch.stack(snapshots).mean(), torch.stack(snapshots).std()
    x = torch.stack([(s - mean) / (deviation + 1e-6) for s in snapshots], -1)
    hidden = x @ w["edge_proj.fc.0.weight"].T + w["edge_proj.fc.0.bias"] + w["layer_embed.weight"][7]
    for layer in (0, 2, 4):
        hidden = nn.functional.silu(hidden @ w[f"edge_mlp.fc.{layer}.weight"].T + w[f"edge_mlp.fc.{layer}.bias"])
    out = (hidden @ w["edge_mlp.fc.6.weight"].T + w["edge_mlp.fc.6.bias"])[..., 11]
    expected = (x[..., -1] + out) * deviation + mean
    p = nn.Parameter(torch.zeros(4, 3))
    base = torch.optim.SGD([("q_proj.weight", p)], lr=0.0)
    optimizer = Nowcast(base, period=5, method="network", network=path, horizon=12)
    for snapshot in snapshots:
        p.data.copy_(snapshot)
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.allclose(p, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "geometric", "network"])
def test_pieces_jump_as_whole_tensors_do(method: Any, tmp_path: Path) -> None:
    """Ratios, means and deviations are over tensors, wherever their pieces lie, and padding is in none."""
    network = network_file(tmp_path) if method == "network" else None
    torch.manual_seed(1)
    named = {"a.weight": torch.randn(5, 3), "n.weight": torch.randn(4) + 9, "wte.weight": torch.randn(6, 2)}
    gradients = [{name: torch.randn_like(t) for name, t in named.items()} for _ in range(11)]
    total = sum(tensor.numel() for tensor in named.values())

    def make(params: Any) -> Nowcast:
        base = torch.optim.SGD(params, lr=0.1, momentum=0.5)
        return Nowcast(base, period=5, method=method, network=network, horizon=3)

    whole = {name: nn.Parameter(tensor.clone()) for name, tensor in named.items()}
    alone = make(whole.items())
    for gradient in gradients:
        for name, p in whole.items():
            p.grad = gradient[name].clone()
        alone.step()
    expected = torch.cat([p.detach().reshape(-1) for p in whole.values()])
    for bounds in ([0, 9, total], [0, 4, 4, 17, total]):

        def train(ranks: PretendRanks, bounds: list[int] = bounds) -> Tensor:
            flat, layout = cut(named, bounds, ranks)
            optimizer = make([flat])
            optimizer.attach(layout)
            for gradient in gradients:
                flat.grad = piece_of(list(gradient.values()), bounds, ranks.rank)
                optimizer.step()
            return flat.detach()

        found = joined(together(len(bounds) - 1, train))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.embed_tokens.weight", (9, 4), 5),
        ("transformer.wpe.weight", (9, 4), 6),
        ("layers.0.self_attn.q_proj.weight", (4, 4), 7),
        ("layers.0.self_attn.k_proj.weight", (4, 4), 8),
        ("layers.0.self_attn.v_proj.weight", (4, 4), 9),
        ("layers.0.self_attn.q_proj.bias", (4,), 2),
        ("layers.0.norm.weight", (4,), 4),
        ("lm_head.weight", (9, 4), 1),
        ("conv.weight", (4, 3, 3, 3), 3),
        ("patch_embedding.table", (4, 3), 2),
        ("scale", (), 2),
    ],
)
def test_types_of_tensors(name: str, shape: tuple[int, ...], kind: int) -> None:
    assert tensor_type(name, shape) == kind


def test_a_graph_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nino.pt"
    torch.save({"state_dict": {"gnn.convs.0.weight": torch.zeros(1), "layer_embed.weight": torch.zeros(15, 4)}}, path)
    with pytest.raises(ValueError, match=r"nino.pt is no network that predicts each weight by itself.*not supported"):
        load_scalar_net(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 7, "snapshots": 2}, r"period must be a multiple of snapshots \(2\), got 7"),
        ({"snapshots": 1}, "snapshots >= 2 must hold for linear"),
        ({"snapshots": 2, "method": "geometric"}, "snapshots >= 3 must hold for geometric"),
        ({"horizon": 0}, "horizon >= 1 must hold"),
        ({"jumps": 0}, "jumps >= 1 must hold"),
        ({"method": "wnn"}, "method must be one of linear, fit, geometric, network, got 'wnn'"),
        ({"method": "network"}, "a network's file is needed for method network"),
        ({"network": "x.pt"}, "a network's file is needed for method network and for no other, got x.pt for linear"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nowcast(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), **arguments)


def test_a_network_sets_the_number_of_snapshots_and_the_farthest_horizon(tmp_path: Path) -> None:
    path, base = network_file(tmp_path), torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match="snapshots must be 5, which"):
        Nowcast(base, period=4, snapshots=4, method="network", network=path)
    with pytest.raises(ValueError, match="horizon must be at most 40"):
        Nowcast(base, method="network", network=path, horizon=41)
