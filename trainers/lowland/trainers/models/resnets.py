"""Residual networks for small images: ResNet (He et al., 2016) with a 3x3 stem, and WideResNet (Zagoruyko, 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def resnet_cifar(depth: int, *, channels: int, classes: int) -> nn.Module:
    """ResNet-18, 34 or 50 with a stem of one 3x3 convolution of stride 1 and no pooling, as CIFAR-10 wants."""
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    return _initialised(ResNet(counts, bottleneck=depth == 50, channels=channels, classes=classes))


def wide_resnet(depth: int, width: int, *, channels: int, classes: int) -> nn.Module:
    """WideResNet of depth 6 n + 4: n blocks of two convolutions in each of three stages, `width` times 16, 32, 64 wide.

    Normalisation and ReLU come before each convolution.
    """
    return _initialised(WideResNet((depth - 4) // 6, width, channels=channels, classes=classes))


class ResNet(nn.Module):
    """Four stages of residual blocks; logits [B, classes] of images [B, channels, H, W]."""

    def __init__(self, counts: Sequence[int], *, bottleneck: bool, channels: int, classes: int) -> None:
        super().__init__()
        block = Bottleneck if bottleneck else Basic
        self.stem = nn.Sequential(_convolution(channels, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        stages, width = [], 64
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(width, 64 << stage, stride))
                width = (64 << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = self.stages(self.stem(images)).mean((2, 3))
        logits: Tensor = self.fc(features)
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(before, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, width, 3),
            nn.BatchNorm2d(width),
        )
        self.shortcut = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B, width, H / stride, W / stride]."""
        return functional.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is in the 3x3."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(before, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, 4 * width, 1),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut = _shortcut(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B, 4 width, H / stride, W / stride]."""
        return functional.relu(self.body(x) + self.shortcut(x))


class WideResNet(nn.Module):
    """Three stages of blocks that normalise before they convolve."""

    def __init__(self, blocks: int, width: int, *, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = _convolution(channels, 16, 3)
        layers, before = [], 16
        for stage in range(3):
            for index in range(blocks):
                layers.append(WideBlock(before, (16 << stage) * width, 2 if stage > 0 and index == 0 else 1))
                before = (16 << stage) * width
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.fc = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, H, W]."""
        features = self.last(self.blocks(self.stem(images))).mean((2, 3))
        logits: Tensor = self.fc(features)
        return logits


class WideBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution is the shortcut where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            _convolution(before, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(), _convolution(width, width, 3)
        )
        self.shortcut = _convolution(before, width, 1, stride) if before != width or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B, width, H / stride, W / stride]."""
        ready: Tensor = self.first(x)
        beside = x if self.shortcut is None else self.shortcut(ready)
        result: Tensor = self.body(ready) + beside
        return result


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(_convolution(before, after, 1, stride), nn.BatchNorm2d(after))


@torch.no_grad()
def _initialised(network: nn.Module) -> nn.Module:
    """Kernels by He et al. (2015), over what a kernel puts out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
