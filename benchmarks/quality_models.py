"""The small models that optimizers are compared on."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Transformer(nn.Module):
    """Pre-norm transformer with learned positions; `embed` may give [B, L, width] or [B, width, L]."""

    def __init__(self, embed: nn.Module, width: int, layers: int, length: int, outputs: int, *, causal: bool) -> None:
        super().__init__()
        self.embed, self._causal = embed, causal
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(_Block(width, layers, causal=causal) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        if isinstance(embed, nn.Embedding):
            nn.init.normal_(embed.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, L, outputs] if causal, else [B, outputs]."""
        x = self.embed(inputs)
        x = (x if self._causal else x.transpose(1, 2)) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head(x if self._causal else x.mean(1))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, layers: int, *, causal: bool) -> None:
        super().__init__()
        self._causal, self._heads = causal, max(1, width // 64)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for linear, std in ((self.qkv, 1.0), (self.up, 1.0), (self.out, 2 * layers), (self.down, 2 * layers)):
            nn.init.normal_(linear.weight, std=0.02 / std**0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self._heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self._causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        grown: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + grown


class ResNet(nn.Module):
    """Residual blocks at a half, a quarter and an eighth of the resolution, one each."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        widths = [width // 2] + [width * 2**i for i in range(layers)]
        convolution = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(_Residual(before, after) for before, after in pairwise(widths)))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10]."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))
