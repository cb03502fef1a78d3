"""The checks, and how they are run."""

from collections.abc import Callable

from lowland.optim.conformance import convergence, refusals, state, tensors
from lowland.optim.conformance.subject import Finding, Result, Subject

__all__ = ["CHECKS", "conformance"]

Check = Callable[[Subject], Finding | None]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        convergence.converges_on_a_quadratic,
        convergence.converges_on_rosenbrock,
        convergence.the_rate_is_read_at_each_step,
        convergence.the_closure_is_evaluated_and_returned,
        state.state_round_trips,
        state.runs_repeat,
        tensors.groups_are_only_a_grouping,
        tensors.frozen_parameters_stay,
        tensors.missing_gradients_are_left_out,
        tensors.memory_order_does_not_matter,
        refusals.complex_parameters_are_refused,
        refusals.sparse_gradients_are_refused,
        refusals.bad_arguments_are_named,
    )
}
"""By name; each returns what it found wrong, or None."""


def conformance(subject: Subject) -> list[Result]:
    """The outcome of every check; an exception inside one is what it found."""
    return [_result(name, check, subject) for name, check in CHECKS.items()]


def _result(name: str, check: Check, subject: Subject) -> Result:
    try:
        finding = check(subject)
    except Exception as error:
        finding = Finding(f"{type(error).__name__}: {error}")
    return Result(name, finding is None, finding.reason if finding else "")
