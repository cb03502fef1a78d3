"""Optuna samplers of lowland's own."""

from lowland.platform.search.samplers.multi_fidelity import MultiFidelitySampler

__all__ = ["MultiFidelitySampler"]
