"""Stopping on a signal, at a place where nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from sdjax.errors import Stopped


class Stop:
    """Whether the run was asked to stop, by SIGTERM (a preemption notice) or SIGINT.

    On several processes JAX's preemption service takes SIGTERM, tells all of them, and names the
    check at which they stop together.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._checks = 0

    def check(self) -> None:
        """Raises Stopped once the run was asked to stop.

        Every process must call it equally often: between loops of the sampler and between steps.
        """
        self._checks += 1
        if jax.process_count() == 1:
            due = self._asked.is_set()
        else:
            due = multihost_utils.reached_preemption_sync_point(self._checks)
        if due:
            raise Stopped

    @contextmanager
    def listening(self, wanted: bool) -> Iterator[None]:
        """Takes signals inside the block: the first asks, a second ends the process at once.

        Where it is not wanted, or not the main thread and no handler can be set, it takes none.
        """
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        alone = jax.process_count() == 1
        signals = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        # Python runs handlers between its own instructions, so not while it waits for devices.
        # What it does at once is to write the signal's number here.
        before = {number: signal.signal(number, lambda *_: None) for number in signals}
        descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=(ours, signals), daemon=True)
        listener.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)
            theirs.close()
            listener.join()
            ours.close()

    def _listen(self, sent: socket.socket, signals: tuple[signal.Signals, ...]) -> None:
        while number := sent.recv(1):
            if number[0] not in signals:
                continue
            if self._asked.is_set():
                os._exit(128 + number[0])
            self._asked.set()
            name = signal.Signals(number[0]).name
            print(
                f"sdjax: {name}: saving, then stopping; a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # to JAX's preemption service
