"""lowland's optimizers in anyone's own DeepSpeed loop."""

from typing import Any

from lowland.optim import Layout, LayoutOptimizer, MultiPass, layers
from lowland.trainers.engines import state
from lowland.trainers.engines.zero_layout import ZeroLayout, parameters_of

__all__ = ["attach"]


def attach(engine: Any) -> Layout:
    """Tells the optimizer of a DeepSpeed engine what the fragments hold that it steps; once, before the first step.

        engine, *_ = deepspeed.initialize(model=model, optimizer=AdaTAMW(model.parameters(), lr=1e-3), config=config)
        attach(engine)
        ...
        engine.backward(loss)
        engine.step()

    As with any optimizer that is not DeepSpeed's, the configuration needs `zero_allow_untested_optimizer: true`, and
    with offload `zero_force_ds_cpu_optimizer: false`.

    Returns:
        The layout.

    Raises:
        TypeError: the optimizer is not one of lowland's, or takes several gradients per step.
        UnknownLayoutError: the fragments do not hold what this version of lowland expects.
    """
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, LayoutOptimizer):
        raise TypeError(
            f"{type(optimizer).__name__} is not one of lowland's optimizers and needs no layout; "
            "put lowland.optim.Whole around it if it looks at whole tensors"
        )
    for layer in layers(optimizer):
        if isinstance(layer, MultiPass):
            raise TypeError(
                f"{type(layer).__name__} takes several gradients of the same batch per step, for which DeepSpeed's "
                "step has no place: train by a recipe, or with lowland.trainers.engines.build_engine"
            )
    zero = ZeroLayout(engine, parameters_of(engine))
    optimizer.attach(zero.layout)
    plain = engine.step

    def step(*arguments: Any, **keywords: Any) -> None:
        if not engine.is_gradient_accumulation_boundary():
            plain(*arguments, **keywords)
            return
        with state.reductions(optimizer, zero.gradients()):
            plain(*arguments, **keywords)

    engine.step = step
    return zero.layout
