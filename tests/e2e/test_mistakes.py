"""A mistake of a user costs seconds and one line, as a process of its own too.

The tables are those of the tests in one process: tests/support/mistake_tables.py.
"""

import marks
import pytest
from mistake_tables import every_mistake
from mistakes import RealAttempt

CASES = every_mistake()
# Two that end before jax is imported, one after it.
SHORT = [
    next(name for name in CASES if name.endswith(kind))
    for kind in ("setting", "config file", "data")
]
SECONDS = 10.0


def ends_soon_with_one_line(folder, model, name):
    """Makes a mistake; a second time if the first one was slow, as on a machine with other work."""
    taken = []
    while not taken or (taken[-1] >= SECONDS and len(taken) < 2):
        attempt = RealAttempt(folder / str(len(taken)), model)
        make, arguments = CASES[name]
        make(attempt, *arguments)
        taken.append(attempt.seconds)
    print(f"{name}: {', '.join(f'{seconds:.1f}' for seconds in taken)} s")
    assert min(taken) < SECONDS


# The one after the import of jax takes four times as long.
@pytest.mark.parametrize("name", marks.heavy_but(SHORT[:2], SHORT))
def test_a_mistake_ends_a_process_within_ten_seconds_with_one_line(tmp_path, model, name):
    ends_soon_with_one_line(tmp_path, model, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_of_a_hundred_mistakes_ends_a_process_with_one_line(tmp_path, model, name):
    ends_soon_with_one_line(tmp_path, model, name)


def test_there_are_a_hundred_mistakes():
    assert len(CASES) > 100
