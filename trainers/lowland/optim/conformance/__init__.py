"""What every optimizer must keep to, as checks that the tests, `lowland optcheck` and anyone's own code run.

from lowland.optim.conformance import Subject, conformance

for result in conformance(Subject("mine", MyOptimizer, {"lr": 1e-2})):
    assert result.passed, result
"""

from lowland.optim.conformance.cuts import Sight, sight
from lowland.optim.conformance.subject import Finding, Result, Subject, subjects
from lowland.optim.conformance.suite import CHECKS, conformance

__all__ = ["CHECKS", "Finding", "Result", "Sight", "Subject", "conformance", "sight", "subjects"]
