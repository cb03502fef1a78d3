"""LM head and cross-entropy in one kernel (liger-kernel), so that logits are never stored.

For a vocabulary of 128 k and 16 k tokens the logits and their gradient are 8 GB in bf16.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration fields by which some models change logits after the head."""


def fused_loss_available(network: PreTrainedModel, device: torch.device) -> str | None:
    """None if the loss can be fused, else why not."""
    if device.type != "cuda":
        return "the fused kernel runs on GPUs only"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (pip install 'lowland[gpu]')"
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return f"the head of {type(network).__name__} is not a linear layer without bias"
    rescaled = [name for name in _RESCALING if getattr(network.config, name, None) not in (None, 1, 1.0)]
    if rescaled:
        return f"{type(network).__name__} changes its logits after the head ({', '.join(rescaled)})"
    return None


class FusedHead:
    """The loss of hidden states, computed by calling the LM head itself.

    It goes through the head's own call, so that hooks run: ZeRO-3 gathers a module's weight in them.
    """

    def __init__(self, head: nn.Linear) -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        self._head = head
        self._plain = head.forward
        self._kernel: Any = LigerFusedLinearCrossEntropyLoss(ignore_index=-100, reduction="sum")
        head.forward = self._forward  # type: ignore[assignment]

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross-entropies of hidden states [B, L, H] and labels [B, L]."""
        loss: Tensor = self._head(hidden.flatten(0, 1), labels.flatten())
        return loss.float()

    def _forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            return self._plain(hidden)
        loss: Tensor = self._kernel(self._head.weight, hidden, labels)
        return loss


def fuse_head(network: PreTrainedModel) -> FusedHead:
    """Fuses the network's head with its loss."""
    head = network.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return FusedHead(head)
