"""Writes conversations that a program makes for countdown tasks, to train a base model on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from sdjax import config
from sdjax.config import Traces
from sdjax.data import learn_tokenizer
from sdjax.errors import UserError, writing
from sdjax.io.files import replacing, to_json, write_text
from sdjax.jobs.prepare_job import checksum
from sdjax.records import Example, Message
from sdjax.tasks import countdown_traces
from sdjax.tasks.countdown import Countdown
from sdjax.tasks.countdown_traces import TraceRow
from sdjax.teacher import reprompt

log = logging.getLogger(__name__)

# Rows that a process makes at a time.
CHUNK = 2000
# Rows that the tokenizer is learned from. It does not depend on the number of rows in the file.
LEARNED_FROM = 4000


def run(cfg: Traces) -> None:
    """Writes traces.jsonl and model/ into `cfg.out`; raises UserError if it holds traces."""
    for name, task in cfg.tasks.items():
        if not isinstance(task, Countdown):
            raise UserError(f"tasks.{name} is a {type(task).__name__}: only Countdown has traces")
    out = Path(cfg.out)
    file = out / "traces.jsonl"
    if file.exists():
        raise UserError(f"out is {cfg.out!r}: it holds traces; remove it or name another")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    model = _write_model(cfg, out / "model")
    with replacing(file) as new, new.open("w", encoding="utf-8") as stream:
        stream.writelines(_chunks(cfg, cfg.rows))
    log.info("%s: %d rows, sha256 %s", file, cfg.rows, checksum(file))
    log.info("%s: tokenizer of %d tokens", out / "model", model)


def _write_model(cfg: Traces, folder: Path) -> int:
    """Writes tokenizer and config of a model without weights; returns its vocabulary's size."""
    context = cfg.shape.max_position_embeddings
    conversations = (
        "".join(f"{m['role']}\n{m['content']}\n" for m in json.loads(line)["messages"])
        for text in _chunks(cfg, LEARNED_FROM)
        for line in text.splitlines()
    )
    size = learn_tokenizer.learn(conversations, cfg.vocabulary, folder, context=context)
    ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    fields = dataclasses.asdict(cfg.shape) | ends
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    return size


def _chunks(cfg: Traces, rows: int) -> Iterator[str]:
    """Yields the text of the file in order; several processes make it if it is long."""
    starts = range(0, rows, CHUNK)
    workers = min(cfg.workers or os.cpu_count() or 1, len(starts))
    if workers == 1:
        yield from (chunk(cfg, start, rows) for start in starts)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(chunk, itertools.repeat(cfg), starts, itertools.repeat(rows))


def chunk(cfg: Traces, start: int, rows: int) -> str:
    """Returns the lines of the rows from `start` up to CHUNK further, and below `rows`."""
    tasks = [task for task in cfg.tasks.values() if isinstance(task, Countdown)]
    shares = [cfg.shares.get(name, 1.0) for name in cfg.tasks]
    lines = []
    for index in range(start, min(start + CHUNK, rows)):
        rng = Random(f"{cfg.seed}/{index}")
        (task,) = rng.choices(tasks, shares)
        row = countdown_traces.trace_row(task, cfg, rng)
        lines.append(to_json({"messages": messages(row, cfg.reprompt)}) + "\n")
    return "".join(lines)


def messages(row: TraceRow, cfg: config.Reprompt) -> list[Message]:
    """Returns the conversation; solution and instruction are written as a teacher reads them."""
    user = Message(role="user", content=row.question)
    example = Example(id="", messages=(user,), answer="", task="")
    shown = () if row.shown is None else (row.shown,)
    if row.instruction:
        cfg = dataclasses.replace(cfg, instruction=row.instruction)
    return [
        *reprompt.messages(example, shown, "", cfg),
        Message(role="assistant", content=row.answer),
    ]
