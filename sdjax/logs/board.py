"""Writes a run's metrics, config and answers as a TensorBoard file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax.errors import writing
from sdjax.io import lease


class Board:
    """A TensorBoard file.

    It does without tensorboardX's writer, because nobody sees what fails in that one's thread.
    """

    def __init__(self, folder: Path, after: int | None, config: Mapping[str, Any]) -> None:
        """`after` is the last step written before, None or -1 at the start; `config` is flat."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import hparams

        self._folder = folder
        lease.make_folder(folder)
        with writing(folder):
            self._events = EventsWriter(str(folder / "events"))
        if after is not None:
            # With this, TensorBoard ignores what earlier files have from this step on.
            self._add(after + 1, session_log=SessionLog(status=SessionLog.START))
        if config and (after is None or after < 0):  # a resumed run has them from its start
            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in config.items()
            }
            for summary in hparams(plain, {})[:2]:  # the third says that the run has ended
                self._add(0, summary=summary)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a step's numbers."""
        from tensorboardX.proto.summary_pb2 import Summary

        # Not tensorboardX's function for scalars, which turns @ in a name into _.
        values = [Summary.Value(tag=name, simple_value=n) for name, n in numbers.items()]
        self._add(step, summary=Summary(value=values))
        self._flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds answers as texts, one tag for each question."""
        from tensorboardX.summary import text

        for number, row in enumerate(rows):
            shown = "\n\n".join(f"**{name}**: {value}" for name, value in row.items())
            self._add(step, summary=text(f"samples/{number}", shown))
        self._flush()

    def problems(self) -> Sequence[str]:
        """Returns none, because what fails is raised at once."""
        return ()

    def close(self, ok: bool = True) -> None:
        """Closes the file."""
        with writing(self._folder):
            self._events.close()

    def _flush(self) -> None:
        with writing(self._folder):
            self._events.flush()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with writing(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
