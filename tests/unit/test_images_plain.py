"""An image training beside a loop of plain torch from the same initial weights over the same batches."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from support.training import states
from support.vision import buffers, config, train
from torch import nn
from torch.nn import functional

from lowland.trainers.models import ImageInput
from lowland.trainers.models.image_folders import own_network
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

CPU = torch.device("cpu")
STEPS, WARMUP, RATE, DECAY = 10, 2, 0.2, 0.01
CHANGES = {
    "length": f"{STEPS} steps",
    "augmentation": {"padding": 1, "flip": 0.5, "label_smoothing": 0.1},
    "optimizer": {"name": "sgd", "lr": RATE, "momentum": 0.9, "nesterov": True, "weight_decay": DECAY},
    "schedule": {"name": "cosine", "warmup": "20%", "final": 0},
    "batch": {"micro_batch": 32},
    "evaluation": {"every": None, "pictures": False},
}


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_is_that_of_plain_torch(tmp_path, channels_last):
    model = {"architecture": "wide-resnet-10-1", "channels_last": channels_last}
    outcome = train(tmp_path, CHANGES | {"model": model})
    task = build_task(config(**CHANGES), World.current(CPU))
    network, accuracy, loss = trained_plainly(task)
    weights, running = states(tmp_path, STEPS)["weight"], buffers(tmp_path, STEPS)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(weights[f"network.{name}"], parameter.detach().flatten(), rtol=1e-4, atol=1e-5)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(running[f"network.{name}"], buffer, rtol=1e-4, atol=1e-5)
    assert outcome.result.metrics["eval/accuracy"] == pytest.approx(accuracy, abs=1.01 / 180)
    assert outcome.result.metrics["eval/loss"] == pytest.approx(loss, rel=1e-3)


def test_a_resume_with_channels_last_is_an_uninterrupted_training_to_the_bit(tmp_path):
    """Weights and momenta lie in memory in another order than in the file."""
    changes = CHANGES | {"model": {"architecture": "wide-resnet-10-1", "channels_last": True}}
    train(tmp_path / "whole", changes)
    assert train(tmp_path / "parts", changes, stop_after=4).result.interrupted
    assert train(tmp_path / "parts", changes).result.resumed_from == 4
    whole, parts = (states(tmp_path / folder, STEPS) for folder in ("whole", "parts"))
    assert {"weight", "momentum_buffer"} < whole.keys()
    for state, values in whole.items():
        assert all(torch.equal(value, parts[state][name]) for name, value in values.items())


def test_batches_for_a_gpu_are_made_in_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    task = build_task(config(**CHANGES), World.current(CPU))
    images = task.train_images()
    next(iter(images))
    assert not pinned
    on_gpu = dataclasses.replace(World.current(CPU), device=torch.device("cuda"))
    monkeypatch.setattr(task, "_world", on_gpu)
    stream = iter(task.train_images())
    (batch,) = next(stream).micro_batches
    stream.close()
    assert any(tensor is batch.images for tensor in pinned)


def trained_plainly(task) -> tuple[nn.Module, float, float]:
    """The network, with torch's own BatchNorm, its accuracy and its loss on the held-out images."""
    torch.manual_seed(3)
    network = own_network("wide-resnet-10-1", ImageInput(8, 1, (), (), task.data.classes.names))
    assert network is not None
    decayed = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    mean, std = (torch.tensor(values).view(1, 1, 1, 1) for values in (task.data.mean, task.data.std))
    stream = iter(task.train_images())
    for step in range(1, STEPS + 1):
        done = (step - WARMUP) / (STEPS - WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (step / WARMUP if step <= WARMUP else 0.5 * (1 + math.cos(math.pi * done)))
        (batch,) = next(stream).micro_batches
        logits = network((batch.images / 255 - mean) / std)
        optimizer.zero_grad()
        functional.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
        optimizer.step()
    stream.close()
    held_out, tested = task.data.held_out, copy.deepcopy(network).eval()
    with torch.no_grad():
        logits = tested((held_out.pixels(np.arange(len(held_out))) / 255 - mean) / std)
    labels = torch.from_numpy(held_out.labels)
    right = (logits.argmax(1) == labels).float().mean()
    return network, float(right), float(functional.cross_entropy(logits, labels))
