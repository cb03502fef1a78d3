"""What a parameter is to its model: decided by the module that holds it, not by its name."""

from collections.abc import Iterator

from torch import nn

from lowland.trainers.recipe.optimizers.mixed import Kind

HEADS = ("lm_head", "head", "classifier", "score", "fc")
"""Attributes under which models that do not say which module is their head have it."""


def parameter_kinds(module: nn.Module) -> dict[str, Kind]:
    """The kind of every parameter, by name; a tied one counts once, under its first name.

    embeddings: tables of nn.Embedding, and a head that shares one.  head: tensors of two or more dimensions of the
    module that the model calls its output embeddings or classifier, or that is named as such.  norms: all of
    modules whose class has "norm" in its name.  biases: other vectors and numbers.  matrices: two dimensions.
    tensors: more, as the kernels of convolutions.
    """
    holders: dict[int, list[nn.Module]] = {}
    for holder in module.modules():
        for parameter in holder.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(holder)
    classifiers = set(map(id, heads(module)))
    return {name: _kind(p, holders[id(p)], classifiers) for name, p in module.named_parameters()}


def _kind(parameter: nn.Parameter, holders: list[nn.Module], heads: set[int]) -> Kind:
    if any(isinstance(holder, nn.Embedding | nn.EmbeddingBag) for holder in holders):
        return "embeddings"
    if any("norm" in type(holder).__name__.lower() for holder in holders):
        return "norms"
    if parameter.dim() < 2:
        return "biases"
    if any(id(holder) in heads for holder in holders):
        return "head"
    return "matrices" if parameter.dim() == 2 else "tensors"


def heads(module: nn.Module) -> Iterator[nn.Module]:
    """What a model calls its output embeddings or classifier, or has named as such; maybe the same one twice."""
    for name, inner in module.named_modules():
        if name.rpartition(".")[2] in HEADS:
            yield inner
        # transformers and timm.
        for said in ("get_output_embeddings", "get_classifier"):
            head = getattr(inner, said, lambda: None)()
            if isinstance(head, nn.Module):
                yield head
