"""Networks of timm: its own initial weights, its folders read, exports that come back; where it is installed."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.models import (
    ImageInput,
    RunningAverages,
    build_image_classifier,
    classifier_sizes,
    load_classifier,
    save_classifier,
)
from lowland.trainers.recipe import ImageModelConfig

timm = pytest.importorskip("timm", exc_type=ImportError)

SEEN = ImageInput(32, 3, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
SMALL = {"architecture": "timm/resnet18", "timm_arguments": {"stem_width": 8, "channels": (8, 8, 16, 16)}}


def build(seen=SEEN, seed=1, **fields):
    return build_image_classifier(ImageModelConfig.model_validate(fields), seen, dtype=torch.float32, seed=seed)


def images(channels=3):
    return torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 3), ("mobilenetv3_small_050", 1), ("vit_tiny_patch16_224", 3)]
)
def test_a_network_is_timms_own(name, channels):
    torch.manual_seed(1)
    sized = {"img_size": 32} if name.startswith("vit") else {}
    plain = timm.create_model(name, num_classes=3, in_chans=channels, **sized)
    network = build(replace(SEEN, channels=channels), architecture=f"timm/{name}")
    batch = images(channels)
    for _ in range(2):
        assert torch.equal(network(batch).logits, plain(batch))
        RunningAverages(network).settle(applied=True)
    expected = plain.state_dict()
    for key, value in network.timm_model.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
    sizes = classifier_sizes(ImageModelConfig(architecture=f"timm/{name}"), replace(SEEN, channels=channels))
    assert sizes[0] == sum(p.numel() for p in plain.parameters())


def test_an_export_comes_back_and_can_be_gone_on_from(tmp_path):
    network = build(**SMALL).eval()
    save_classifier(network, ImageModelConfig.model_validate(SMALL), SEEN, dict(network.state_dict()), tmp_path)
    loaded, seen = load_classifier(tmp_path)
    assert seen == SEEN
    assert torch.equal(loaded(images()).logits, network(images()).logits)
    again = build(path=str(tmp_path), seed=2).eval()
    assert torch.equal(again(images()).logits, network(images()).logits)
    other = build(replace(SEEN, classes=tuple("vwxyz")), path=str(tmp_path), seed=2).eval()
    assert other(images()).logits.shape == (4, 5)
    assert torch.equal(other.timm_model.conv1.weight, network.timm_model.conv1.weight)
    with pytest.raises(RecipeError, match=r"data.channels = 1: the model takes 3"):
        build(replace(SEEN, channels=1), path=str(tmp_path))


def pretrained(folder, name, **described):
    """A folder as timm writes one for the hub."""
    network = timm.create_model(name, num_classes=7)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "num_classes": 7, "pretrained_cfg": {"input_size": [3, 224, 224], **described}}
    (folder / "config.json").write_text(json.dumps(config))
    return network


def test_pretrained_weights_are_read_from_timms_folders(tmp_path):
    network = pretrained(tmp_path, "resnet18")
    found = build(path=str(tmp_path)).eval()
    assert torch.equal(found.timm_model.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert torch.equal(found.timm_model.bn1.running_var, network.bn1.running_var)
    assert found(images()).logits.shape == (4, 3)
    assert classifier_sizes(ImageModelConfig(path=str(tmp_path)), SEEN)[0] == sum(p.numel() for p in found.parameters())


def test_networks_that_do_not_go_with_the_images(tmp_path):
    with pytest.raises(RecipeError, match=r"timm/resnet19: timm .* has no such network; nearest: resnet1"):
        build(architecture="timm/resnet19")
    with pytest.raises(
        RecipeError, match=r"timm/resnet18.foo: timm .* has no such tag; give resnet18 or .*resnet18.a1"
    ):
        build(architecture="timm/resnet18.foo")
    with pytest.raises(RecipeError, match=r"model.timm_arguments: timm's resnet18 refuses them: .*wings"):
        build(architecture="timm/resnet18", timm_arguments={"wings": 2})
    pretrained(tmp_path, "vit_tiny_patch16_224", fixed_input_size=True)
    with pytest.raises(RecipeError, match=r"data.size = 32: the model takes images of 224 x 224"):
        build(path=str(tmp_path))
    with pytest.raises(DataError, match="no model configuration can be read there"):
        build(path=str(tmp_path / "none" / "there"))
