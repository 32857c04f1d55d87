"""A fixture for tests that run programs in the sandbox."""

import pytest

from sdjax.errors import UserError
from sdjax.graders.code import sandbox


@pytest.fixture(scope="session")
def sandboxed():
    """Skips a test if the sandbox does not work on this machine."""
    try:
        sandbox.require()
    except UserError as error:
        pytest.skip(str(error))
