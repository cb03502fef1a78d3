"""Short trainings go as they went when their golden files were written."""

from pathlib import Path

import pytest
from support import golden


@pytest.mark.parametrize("name", golden.RUNS)
def test_golden_trajectory(name: str, tmp_path: Path) -> None:
    """Exactly on the machine that wrote it; elsewhere libraries add in another order, which is 1e-5 by step 20."""
    machine, expected = golden.read(name)
    found = golden.trajectory(name, tmp_path)
    if machine == golden.machine():
        assert found == expected
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 20
