"""Exceptions that are not bugs: mistakes that the user can mend, and a run that is stopped."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

RESUME = 75
"""Exit code of a run that a signal stopped after saving; the same command with --resume goes on.
It is EX_TEMPFAIL of sysexits.h. Nothing else exits with it."""

TOO_LARGE = 3
"""Exit code of a plan that says that a training does not fit; its files are written."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""The numbers of an OSError that says that a disk is full, or read-only."""


class UserError(ValueError):
    """A mistake in a config, a data file, a model folder or the environment.

    The message is one line that names the field, file or row, its value, and the remedy.
    `sdjax.main` prints it without a traceback and exits with code 2.
    """


class WriteError(UserError):
    """A file that could not be written, such as on a full disk: its path and why."""

    @classmethod
    def of(cls, path: str | PathLike, error: OSError) -> WriteError:
        """Returns the error that names the path, and why `error` says it cannot be written."""
        return cls.because(path, error.strerror or str(error))

    @classmethod
    def because(cls, path: str | PathLike, reason: str) -> WriteError:
        """Returns the error that names the path and the reason."""
        return cls(f"{path}: cannot be written ({reason}): make room, or write elsewhere")


class TooLarge(Exception):
    """A plan says that a training does not fit its slice; `sdjax.main` exits with TOO_LARGE."""


class Stopped(Exception):
    """A signal asked the run to stop, and it has stopped; `sdjax.main` exits with RESUME."""


@contextmanager
def writing(path: str | PathLike) -> Iterator[None]:
    """Raises a WriteError that names the path in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise WriteError.of(path, error) from error
