"""Optimizers that look for flat minima; torch alone."""

from lowland.optim.base import LayoutOptimizer
from lowland.optim.layout import Fragment, Gradients, Layout, Parameter, Segment
from lowland.optim.owners import Owners
from lowland.optim.ranks import Ranks
from lowland.optim.torque import TAM, AdaTAM, AdaTAMW
from lowland.optim.wrapper import MultiPass, Wrapper, layers, shared_state

__all__ = [
    "TAM",
    "AdaTAM",
    "AdaTAMW",
    "Fragment",
    "Gradients",
    "Layout",
    "LayoutOptimizer",
    "MultiPass",
    "Owners",
    "Parameter",
    "Ranks",
    "Segment",
    "Wrapper",
    "layers",
    "shared_state",
]
