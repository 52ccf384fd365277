"""These tests compute with TensorFlow in their own process."""

import pytest

from cvpipe.models.framework import set_threads


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """TensorFlow takes the number before its first computation, whichever test that is in."""
    set_threads(2)
