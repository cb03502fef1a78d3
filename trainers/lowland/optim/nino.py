"""The networks of NiNo that predict each weight from its own past ("WNN+"; Knyazev et al., arXiv 2409.04434).

With snapshots w_1 ... w_c of a tensor, and mean mu and standard deviation sigma over all elements of all of them:

    x = (w - mu) / (sigma + 1e-6)
    h = E x + b + e[type of the tensor]
    w_{c+k} = mu + sigma (x_c + MLP(h)_k)           k from 1 to 40 snapshots ahead

NiNo's graph networks pass messages between the weights of neighbouring layers and are not supported.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["ScalarNet", "load_scalar_net", "tensor_type"]

EPS = 1e-6
"""Added to the standard deviation."""
_CHUNK = 1 << 16
"""Elements predicted at once: an activation of each takes 512 bytes."""

_NAMED_TYPES = (
    (5, ("wte", "embed_tokens", "word_embeddings")),
    (6, ("wpe", "position_embeddings")),
    (7, ("q_proj", "query")),
    (8, ("k_proj", "key")),
    (9, ("v_proj", "value")),
)
"""NiNo's numbers of tensor types that go by a module's name."""


class _Sequence(nn.Module):
    """Layers under the name that NiNo's files give them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Sequential(*layers)


class ScalarNet(nn.Module):
    """The network; applied to each element by itself.

    Args:
        context: snapshots it takes (c).
        hidden: width.
        horizons: snapshots ahead it can predict.
        types: types of tensors it knows.
    """

    def __init__(self, context: int, hidden: int, horizons: int, types: int) -> None:
        super().__init__()
        self.context, self.horizons = context, horizons
        self.layer_embed = nn.Embedding(types, hidden)
        self.edge_proj = _Sequence(nn.Linear(context, hidden))
        layers: list[nn.Module] = [part for _ in range(3) for part in (nn.Linear(hidden, hidden), nn.SiLU())]
        self.edge_mlp = _Sequence(*layers, nn.Linear(hidden, horizons))

    @torch.no_grad()
    def change(self, scaled: Sequence[Tensor], kind: int, horizon: int) -> Tensor:
        """By how much each element moves from its last snapshot.

        Args:
            scaled: the c snapshots of equal shape, standardised.
            kind: the tensor's type.
            horizon: snapshots ahead, from 1.
        """
        *inner, last = self.edge_mlp.fc
        assert isinstance(last, nn.Linear)
        inputs = torch.stack([x.reshape(-1) for x in scaled], -1)
        found = []
        for x in inputs.split(_CHUNK):
            hidden = self.edge_proj.fc(x) + self.layer_embed.weight[kind]
            for layer in inner:
                hidden = layer(hidden)
            found.append(hidden @ last.weight[horizon - 1] + last.bias[horizon - 1])
        return torch.cat(found).view(scaled[0].shape)


def load_scalar_net(path: str | Path) -> ScalarNet:
    """Reads one of NiNo's published files, `nino_mlp.pt` or `nino_mlp_h32.pt`.

    Raises:
        ValueError: the file holds another network, such as NiNo's graph networks.
        OSError: there is no such file.
    """
    held = torch.load(path, map_location="cpu", weights_only=True)
    weights: Mapping[str, Tensor] = held.get("state_dict", held)
    needed = ("edge_proj.fc.0.weight", "edge_mlp.fc.6.weight", "layer_embed.weight")
    if any(name.startswith(("gnn.", "node_proj.")) for name in weights) or not all(name in weights for name in needed):
        raise ValueError(
            f"{path} is no network that predicts each weight by itself, as NiNo's nino_mlp.pt and nino_mlp_h32.pt are; "
            "its graph networks (nino.pt, nino_no_posw.pt and others) need a graph of the model's neurons and are not "
            "supported"
        )
    projection, output = weights[needed[0]], weights[needed[1]]
    net = ScalarNet(projection.shape[1], projection.shape[0], output.shape[0], weights[needed[2]].shape[0])
    net.load_state_dict(dict(weights))
    return net.eval().requires_grad_(False)


def tensor_type(name: str, shape: Sequence[int]) -> int:
    """NiNo's number of a tensor's type, by its name and shape; one it does not know counts as a bias.

    GPT-2's fused attention matrices, which NiNo cuts in three, count as fully connected.
    """
    module = name.removesuffix(".weight").rpartition(".")[2]
    if len(shape) == 1:
        return 4 if name.endswith(".weight") else 2
    if len(shape) in (2, 3):
        for kind, modules in _NAMED_TYPES:
            if module in modules:
                return kind
    if len(shape) == 4:
        return 3
    return 1 if len(shape) == 2 and "embed" not in name else 2
