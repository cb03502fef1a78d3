"""What tests of single parts share."""

import pytest
from support.images import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Images to train on."""
    return write_digits(tmp_path_factory.mktemp("digits") / "digits.parquet")
