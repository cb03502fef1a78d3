"""The last linear layer of a network, for methods that change or look at it."""

from torch import nn

from lowland.trainers.errors import RecipeError
from lowland.trainers.kinds import heads


def classifier_of(network: nn.Module, method: str) -> tuple[str, nn.Linear]:
    """The name and the module of the classifier.

    Raises:
        RecipeError: the network has none, or more than one, that is a linear layer.
    """
    found = {id(head): head for head in heads(network) if isinstance(head, nn.Linear)}
    if len(found) != 1:
        raise RecipeError(
            f"methods: {method} is about the classifier, but {type(network).__name__} has {len(found)} linear layers "
            "that could be it; choose another model, or remove the method"
        )
    (head,) = found.values()
    (name,) = [name for name, module in network.named_modules() if module is head]
    return name, head


def replace_module(network: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
