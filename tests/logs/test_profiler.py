"""A profile does not bring back the directory of a run."""

import shutil

import pytest

from sdjax.errors import UserError
from sdjax.io import lease
from sdjax.logs import profiler


def test_a_trace_does_not_bring_back_a_directory_that_is_gone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lease.take(out)
    with pytest.raises(UserError, match=f"{out}: was removed"), profiler.trace(out / "profile"):
        shutil.rmtree(out)
    assert not out.exists() and tmp_path.exists()
    lease.release(out)
