"""Networks of the sizes that are published, BatchNorm that is torch's, and exports that come back."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowland.optim.passes import frozen_statistics
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.models import (
    ImageClassifierLoss,
    ImageInput,
    RunningAverages,
    build_image_classifier,
    classifier_sizes,
    load_classifier,
    save_classifier,
    use_step_batch_norm,
)
from lowland.trainers.models.heads import ETFClassifier
from lowland.trainers.recipe import ImageModelConfig


def seen(size=32, channels=3, classes=10):
    return ImageInput(size, channels, (0.5,) * channels, (0.25,) * channels, tuple(map(str, range(classes))))


@pytest.mark.parametrize(
    ("fields", "size", "classes", "parameters", "giga_flops"),
    [
        ({"architecture": "resnet18-cifar"}, 32, 10, 11_173_962, 1.11),
        ({"architecture": "resnet50-cifar"}, 32, 10, 23_520_842, 2.6),
        ({"architecture": "wide-resnet-28-10"}, 32, 10, 36_479_194, 10.5),
        ({"architecture": "resnet50"}, 224, 1000, 25_557_032, 8.2),
        ({"architecture": "vit-tiny"}, 224, 1000, 5_717_416, 2.5),
        ({"architecture": "vit-base"}, 224, 1000, 86_567_656, 35.1),
        ({"architecture": "convnext-tiny"}, 224, 1000, 28_589_128, 8.9),
    ],
)
def test_sizes_are_the_published_ones(fields, size, classes, parameters, giga_flops):
    found, flops = classifier_sizes(ImageModelConfig.model_validate(fields), seen(size, classes=classes))
    assert found == parameters
    assert flops / 1e9 == pytest.approx(giga_flops, rel=0.05)


def norms():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    for norm in (plain[1], plain[3]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    own = nn.Sequential(*(type(m)(*_sizes(m)) for m in plain))
    own.load_state_dict(plain.state_dict())
    return plain, use_step_batch_norm(own, synchronised=False)


def _sizes(module):
    return (module.num_features,) if isinstance(module, nn.BatchNorm2d) else (*module.weight.shape[1::-1], 3)


def test_one_pass_a_step_is_torchs_batch_norm():
    plain, own = norms()
    for step in range(3):
        images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        expected, found = plain(images), own(images)
        assert torch.equal(found, expected)
        assert not torch.equal(own[1].running_mean, plain[1].running_mean), "nothing moves before the step is done"
        RunningAverages(own).settle(applied=True)
    assert own.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)
    assert torch.equal(own.eval()(images), plain.eval()(images)) or torch.allclose(own(images), plain(images))


def test_passes_of_a_step_count_as_one_and_other_passes_not_at_all():
    plain, own = norms()
    parts = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    for part in parts:
        own(part)
    with frozen_statistics(own):
        own(torch.randn(4, 3, 8, 8) * 100)
    RunningAverages(own).settle(applied=True)
    first = [plain[0](part) for part in parts]
    mean = torch.stack([x.mean((0, 2, 3)) for x in first]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in first]).mean(0)
    torch.testing.assert_close(own[1].running_mean, 0.1 * mean)
    torch.testing.assert_close(own[1].running_var, 0.9 + 0.1 * variance)
    before = own[1].running_mean.clone()
    own(torch.full((4, 3, 8, 8), torch.nan))
    RunningAverages(own).settle(applied=False)
    RunningAverages(own).settle(applied=False)
    assert torch.equal(own[1].running_mean, before)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's of this name."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, images):
        return self.act(self.drop(super().forward(images)))


def test_batch_norm_with_an_activation_behind_it():
    plain, own = (nn.Sequential(BatchNormAct2d(3)) for _ in range(2))
    use_step_batch_norm(own, synchronised=False)
    images = torch.randn(4, 3, 5, 5)
    assert torch.equal(own(images), plain(images))
    assert not torch.equal(own[0].running_mean, plain[0].running_mean), "nothing moves before the step is done"
    RunningAverages(own).settle(applied=True)
    assert own.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(own[0].running_mean, plain[0].running_mean)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)])
def test_batch_norm_that_would_differ_between_workers_is_refused(layer):
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(layer))
    with pytest.raises(RecipeError, match=rf"its layer 1.0 is a {type(layer).__name__}, whose running averages"):
        use_step_batch_norm(network, synchronised=False)


def test_a_compiled_network_is_the_same_in_one_graph():
    recipe, how = ImageModelConfig(architecture="wide-resnet-10-1"), seen(8)
    plain, compiled = (build_image_classifier(recipe, how, dtype=torch.float32, seed=1) for _ in range(2))
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager", fullgraph=True)
    for step in range(2):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        assert torch.equal(compiled(images), plain(images))
        for network in (plain, compiled):
            RunningAverages(network).settle(applied=True)
    expected = plain.state_dict()
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_layer_that_no_pass_came_through_keeps_its_averages():
    _, own = norms()
    own[1](torch.randn(4, 4, 8, 8))
    RunningAverages(own).settle(applied=True)
    assert not torch.equal(own[1].running_mean, torch.zeros(4))
    assert torch.equal(own[3].running_mean, torch.zeros(2))
    assert torch.equal(own[3].running_var, torch.ones(2))


def test_statistics_stay_fp32_in_a_bf16_network():
    _, own = norms()
    own[1].running_mean.fill_(1 + 2**-12)
    own.to(torch.bfloat16)
    assert own[0].weight.dtype == own[1].weight.dtype == torch.bfloat16
    assert (own[1].running_mean == 1 + 2**-12).all()
    assert own(torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    RunningAverages(own).settle(applied=True)
    assert own[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_loss_by_hand(channels_last):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    loss = ImageClassifierLoss(network, seen(2, classes=3), label_smoothing=0.3, channels_last=channels_last)
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    others = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    labels, other_labels = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])
    weights = torch.tensor([1.0, 0.5, 0.25, 0.0])

    def logs(images):
        return network((images - 0.5) / 0.25).log_softmax(1)

    def smoothed(log, labels):
        return -(0.7 * log.gather(1, labels[:, None])[:, 0] + 0.3 * log.mean(1))

    plain = logs(images / 255)
    torch.testing.assert_close(loss(images, labels), smoothed(plain, labels).sum())
    mixed = weights.view(-1, 1, 1, 1) * images / 255 + (1 - weights.view(-1, 1, 1, 1)) * others / 255
    log = logs(mixed)
    expected = (weights * smoothed(log, labels) + (1 - weights) * smoothed(log, other_labels)).sum()
    mixture = {"others": others, "pixel_weights": weights, "other_labels": other_labels, "label_weights": weights}
    torch.testing.assert_close(loss(images, labels, **mixture), expected)
    torch.testing.assert_close(loss.eval()(images, labels), -plain.gather(1, labels[:, None]).sum())
    torch.testing.assert_close(loss(images).log_softmax(1), plain)


VIT = {"model_type": "vit", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "fields",
    [{"architecture": "wide-resnet-10-1"}, {"config": {**VIT, "patch_size": 4}}],
    ids=["own", "transformers"],
)
def test_an_export_comes_back_and_can_be_gone_on_from(fields, tmp_path):
    recipe, how = ImageModelConfig.model_validate(fields), seen(8, classes=3)
    network = build_image_classifier(recipe, how, dtype=torch.float32, seed=1).eval()
    save_classifier(network, recipe, how, dict(network.state_dict()), tmp_path)
    loaded, found = load_classifier(tmp_path)
    assert found == how
    images = torch.randn(2, 3, 8, 8)
    expected = ImageClassifierLoss(network, how).logits(images)
    assert torch.equal(ImageClassifierLoss(loaded, how).logits(images), expected)
    again = ImageModelConfig(path=str(tmp_path))
    for classes in (3, 5):
        other = build_image_classifier(again, seen(8, classes=classes), dtype=torch.float32, seed=2).eval()
        logits = ImageClassifierLoss(other, how).logits(images)
        assert logits.shape == (2, classes)
        assert torch.equal(logits, expected) == (classes == 3)
    with pytest.raises((DataError, RecipeError), match="channels"):
        build_image_classifier(again, seen(8, channels=1, classes=3), dtype=torch.float32, seed=2)


@pytest.mark.parametrize("fixed", [False, True], ids=["linear", "fixed"])
@pytest.mark.parametrize("classes", [("0", "1", "9"), ("2", "1", "0"), ("0", "1", "2", "3")])
def test_a_head_of_other_classes_begins_anew_and_the_rest_is_kept(classes, fixed, tmp_path):
    recipe, how = ImageModelConfig(architecture="wide-resnet-10-1"), seen(8, classes=3)
    network = build_image_classifier(recipe, how, dtype=torch.float32, seed=1)
    if fixed:
        network.fc = ETFClassifier(torch.randn(3, 64), scale=2.0)
    save_classifier(network, recipe, how, dict(network.state_dict()), tmp_path)
    again, other = ImageModelConfig(path=str(tmp_path)), replace(how, classes=classes)
    own, found = (build_image_classifier(m, other, dtype=torch.float32, seed=2).state_dict() for m in (recipe, again))
    assert found.keys() == own.keys()
    expected = {name: own if name.startswith("fc.") else network.state_dict() for name in own}
    assert all(torch.equal(value, expected[name][name]) for name, value in found.items())
    assert classifier_sizes(again, other) == classifier_sizes(recipe, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "vit-tiny", "patch_size": 5},
            "model.patch_size = 5: must divide the images' side, which is 8",
        ),
        ({"config": {**VIT, "image_size": 16}}, "the model takes images of 16 x 16; set data.size: 16"),
        ({"config": {"model_type": "llama"}}, "transformers makes no image classifier of it"),
        ({"config": {"model_type": "nothing"}}, "model.config: .*nothing"),
        ({"path": "nowhere/at-all/here"}, "no model configuration can be read there"),
    ],
)
def test_models_that_do_not_go_with_the_images(fields, message):
    with pytest.raises((DataError, RecipeError), match=message):
        build_image_classifier(ImageModelConfig.model_validate(fields), seen(8), dtype=torch.float32, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "resnet19"}, "must be one of resnet18-cifar"),
        ({"architecture": "wide-resnet-12-2"}, "the depth of a wide-resnet is 6 n"),
        ({}, "give one of `architecture`, `path`, `config`; given: none"),
        ({"architecture": "resnet50", "path": "x"}, "given: architecture, path"),
        ({"config": {"hidden_size": 3}}, "`config` needs `model_type`"),
        ({"architecture": "resnet50", "patch_size": 4}, "patch_size is for the architectures vit"),
    ],
)
def test_sections_that_name_no_model(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageModelConfig.model_validate(fields)


def test_a_folder_of_timm_without_timm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    described = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(RecipeError, match=r"a network of timm, which cannot be imported .*pip install 'lowland\[timm"):
        classifier_sizes(ImageModelConfig(path=str(tmp_path)), seen(8))
