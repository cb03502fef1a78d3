"""AdamW that says which step it has made, for `optimizer.name: custom`; what is printed is in the trial's logs."""

import time
from typing import Any

import torch

MARK = "made step"


class Told(torch.optim.AdamW):
    """AdamW.

    Args:
        params: as AdamW takes them.
        lr: the same.
        pause: seconds that a step takes longer, so that there is time to kill something while it trains.
    """

    def __init__(self, params: Any, lr: float, pause: float) -> None:
        super().__init__(params, lr)
        self._pause = pause

    def step(self, closure: Any = None) -> Any:
        """Steps, and says so."""
        result = super().step(closure)
        made = next(int(state["step"]) for state in self.state.values())
        print(f"{MARK} {made} at {time.time():.3f}", flush=True)
        time.sleep(self._pause)
        return result
