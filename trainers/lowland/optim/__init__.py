"""Optimizers that look for flat minima; torch alone."""

from lowland.optim.layout import Fragment, Layout, LayoutAware, Parameter, Segment
from lowland.optim.torque import AdaTAMW

__all__ = ["AdaTAMW", "Fragment", "Layout", "LayoutAware", "Parameter", "Segment"]
