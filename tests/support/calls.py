"""Counts the calls and compilations of jitted functions."""

import jax

COMPILED = []
"""Seconds of every compilation (or of a look-up in the cache of programs) of this process."""


def count(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


jax.monitoring.register_event_duration_secs_listener(count)


class Calls:
    """A jitted function that takes nothing from the host.

    It remembers the shapes and static arguments it was called with, and at each call how many
    programs had been compiled.
    """

    def __init__(self, function):
        self.function = function
        self.shapes = set()
        self.count = 0
        self.compiled = []

    def __call__(self, *args, **static):
        leaves = tuple((x.shape, x.dtype) for x in jax.tree.leaves(args))
        self.shapes.add((leaves, tuple(static.items())))
        self.count += 1
        self.compiled.append(len(COMPILED))
        with jax.transfer_guard("disallow"):
            return self.function(*args, **static)
