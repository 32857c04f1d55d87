"""Stops a run after a signal, between two steps or two loops of the sampler."""

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
    """Tells a run that SIGTERM (a preemption notice) or SIGINT asks it to stop.

    With several processes, JAX's preemption service takes SIGTERM. It tells every process and
    chooses the check at which all of them stop.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._checks = 0

    def check(self) -> None:
        """Raises Stopped after a signal.

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

        It takes none if `wanted` is False, or outside the main thread, where Python sets no
        handlers.
        """
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        alone = jax.process_count() == 1
        signals = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        # Python runs no handler while it waits for devices, because handlers run between its own
        # instructions. It writes the signal's number to this socket at once, and a thread reads it.
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
        """Reads the numbers of signals until the socket closes, in a thread."""
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
