"""Writes profiler traces (XProf, Perfetto) and prints where the devices' time went."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import jax

from sdjax.analysis import trace as traces
from sdjax.errors import WriteError
from sdjax.io import lease


@contextmanager
def trace(folder: Path) -> Iterator[None]:
    """Writes a trace of the block into `folder` and prints where the devices' time went.

    Open it with XProf or TensorBoard's profile plugin; the .trace.json.gz also with Perfetto.
    Raises WriteError if the trace cannot be written, and UserError if the run directory is gone.
    """
    options = jax.profiler.ProfileOptions()
    # Without Python's calls, because they would fill the trace and slow down what it measures.
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        yield
        lease.check()
    except BaseException:
        gone = [each for each in folder.parents if not each.exists()]
        with suppress(jax.errors.JaxRuntimeError):  # The error of the block counts.
            jax.profiler.stop_trace()
        if gone:  # such as the run directory, which jax has just made anew
            shutil.rmtree(gone[-1], ignore_errors=True)
        raise
    try:
        jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:
        raise WriteError.because(folder, str(error).rpartition("; ")[2]) from error
    if jax.process_index() == 0:
        print(f"trace: {folder}\n{traces.to_markdown(traces.read(folder))}", flush=True)


@contextmanager
def rounds(folder: str | None, traced: range = range(1, 3)) -> Iterator[Callable[[int], None]]:
    """Yields a function that a loop calls before each round, with the round's number from 0.

    One trace takes the rounds `traced`; round 0 is left out because it compiles. Without a folder
    there is no trace.
    """
    begun = folder is None
    with ExitStack() as open_trace:

        def before(number: int) -> None:
            nonlocal begun
            if number == traced.start and folder is not None:
                open_trace.enter_context(trace(Path(folder)))
                begun = True
            if number == traced.stop:
                open_trace.close()

        yield before
    if not begun:
        print(f"no trace in {folder}: there were fewer than {traced.start + 1} rounds", flush=True)
