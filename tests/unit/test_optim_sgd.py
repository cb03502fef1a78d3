"""SGD: torch's, also where torch's fused form fails."""

import itertools

import pytest
import torch
from torch import nn

from lowland.optim import SGD


def trained(kind: type[torch.optim.Optimizer], late: int, **arguments: object) -> list[nn.Parameter]:
    """Two parameters after six steps; the second has no gradient in the first `late` of them."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(7))]
    optimizer = kind(params, lr=0.1, **arguments)  # type: ignore[call-arg]
    for step in range(6):
        gradients = [torch.randn(p.shape, generator=generator) for p in params]
        params[0].grad, params[1].grad = gradients[0], gradients[1] if step >= late else None
        optimizer.step()
    return params


@pytest.mark.parametrize(
    ("late", "momentum", "nesterov"),
    [case for case in itertools.product((0, 2), (0.0, 0.9), (False, True)) if case[1] or not case[2]],
)
def test_it_is_torchs(late: int, momentum: float, nesterov: bool) -> None:
    arguments = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1}
    ours, reference = trained(SGD, late, **arguments), trained(torch.optim.SGD, late, foreach=False, **arguments)
    for p, q in zip(ours, reference, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_without_decay_the_first_step_is_torchs_to_the_bit() -> None:
    p, q = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    for kind, w in ((SGD, p), (torch.optim.SGD, q)):
        w.grad = torch.tensor([0.3, 1e-8])
        kind([w], lr=0.1, momentum=0.9).step()
    assert torch.equal(p, q)


def test_a_closure_is_evaluated_with_gradients() -> None:
    w = nn.Parameter(torch.tensor(3.0))
    optimizer = SGD([w], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = w.square() / 2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.5
    assert w.item() == 1.5


def test_hooks_run_once_a_step_also_where_torchs_own_class_is_in_use() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    w, steps = nn.Parameter(torch.ones(1)), []
    w.grad = torch.ones(1)
    optimizer = SGD([w], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    optimizer.step()
    assert steps == [1]


def test_under_torchs_loss_scaler_steps_are_left_out_or_unscaled() -> None:
    w, reference = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer, plain = SGD([w], lr=0.1, momentum=0.9), SGD([reference], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (torch.inf, 1.0, 3.0):
        optimizer.zero_grad()
        scaler.scale((factor * w).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor < torch.inf:
            reference.grad = torch.full_like(reference, factor)
            plain.step()
        assert torch.equal(w, reference)
