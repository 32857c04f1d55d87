"""The exceptions that are no bugs: what the user can mend, and being told to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

RESUME = 75
"""Exit code of a run that a signal stopped, all saved: the same command with --resume goes on.
EX_TEMPFAIL of sysexits.h, which nothing else here exits with."""


class UserError(ValueError):
    """A mistake in a config, a data file, a model folder or the environment.

    The message is one line that names the field, file or row, its value, and the remedy.
    `sdjax.main` prints it without a traceback and exits with code 2.
    """


class WriteError(UserError):
    """A file that could not be written, such as on a full disk: its path and why."""


class Stopped(Exception):
    """The run was asked to stop, and has; `sdjax.main` exits with RESUME."""


@contextmanager
def writing(path: str | PathLike) -> Iterator[None]:
    """Turns an OSError of the block into a WriteError that names the path."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteError(f"{path}: cannot be written ({why})") from error
