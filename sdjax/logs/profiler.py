"""Profiler traces (XProf, Perfetto) and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from sdjax.analysis import trace as traces


@contextmanager
def trace(folder: Path) -> Iterator[None]:
    """Writes a trace of the block into `folder` and prints where the devices' time went.

    Open it with XProf or TensorBoard's profile plugin; the .trace.json.gz also with Perfetto.
    """
    options = jax.profiler.ProfileOptions()
    # Python's own calls would be most of the trace, and slow down what is measured.
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield
    if jax.process_index() == 0:
        print(f"trace: {folder}\n{traces.to_markdown(traces.read(folder))}", flush=True)


@contextmanager
def rounds(folder: str | None, traced: range = range(1, 3)) -> Iterator[Callable[[int], None]]:
    """Yields what a loop calls with the number of each round before it, from 0.

    The rounds `traced` go into one trace; the first, which compiles, is none of them. No folder,
    no trace.
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
