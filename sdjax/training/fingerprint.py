"""Fingerprints of what a run reads, so that a resumed run notices data or a model that changed.

They depend on contents, not on paths or on versions of libraries. They find changes by accident
and protect against nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from sdjax.data.pipeline import LISTED
from sdjax.io import progress
from sdjax.learner.supervised import Conversation
from sdjax.records import Example
from sdjax.tokenizer import PROBE, Tokenizer
from sdjax.training.evaluation import HeldOut
from sdjax.training.loaded_model import LoadedModel

SAMPLES, SAMPLE = 16, 4096
"""Parts of each file of weights that are read, and the bytes of a part. Training changes all."""
SOME = 1000
"""Examples that stand for a data set which is too large to be listed."""


def of_run(
    model: LoadedModel,
    examples: Sequence[Example] | Sequence[Conversation] = (),
    sets: Sequence[HeldOut] = (),
) -> dict[str, str]:
    """Returns the fingerprints of a run by name; on all processes but the first, {}.

    `data` stands for the examples that are used, in order, `held_out` for those of evaluations.
    60,000 rows with solutions take about a second.
    """
    if jax.process_index() != 0:
        return {}
    out = {"data": _of_rows(examples)} if len(examples) else {}
    if model.teachers:
        files = (part for each in model.teachers.values() for part in _of_weights(each.folder))
        out["teacher"] = f"sha256 {_digest(files)}"
    if sets:
        out["held_out"] = ", ".join(f"{part.name}: {_of_rows(part.examples)}" for part in sets)
    return out | _of_model(model)


def _of_rows(rows: Sequence[Any]) -> str:
    step = max(len(rows) // SOME, 1) if len(rows) > LISTED else 1
    chosen = range(0, len(rows), step)
    texts = (_text(rows[i]) for i in progress.told(chosen, "hashing", "rows", len(chosen)))
    return f"{len(rows)} rows, sha256 {_digest(texts)}"


def _text(row: Any) -> bytes:
    if isinstance(row, Conversation):
        return row.tokens.tobytes() + b"%d" % row.start
    # vars, because dataclasses.asdict copies every value and takes ten times as long.
    fields = {n: value for n, value in vars(row).items() if n != "columns" or value}
    return json.dumps(fields, default=str).encode()


def _of_model(model: LoadedModel) -> dict[str, str]:
    """Returns the fingerprints of tokenizer, chat template and weights, and the hub's revision."""
    template = json.dumps(model.tokenizer.base.chat_template, sort_keys=True)
    parts = model.folder.resolve().parts if model.folder.is_dir() else ()
    out = {
        "tokenizer": f"sha256 {_digest(_of_tokenizer(model.tokenizer))}",
        "template": f"sha256 {_digest([template.encode()])}",
        "weights": f"sha256 {_digest(_of_weights(model.folder))}",
    }
    if "snapshots" in parts[:-1]:  # the hub's cache
        out["revision"] = parts[parts.index("snapshots") + 1]
    return out


def _of_tokenizer(tokenizer: Tokenizer) -> Iterable[bytes]:
    vocabulary = sorted(tokenizer.base.get_vocab().items(), key=lambda item: (item[1], item[0]))
    yield json.dumps([vocabulary, list(tokenizer.stop_ids)]).encode()
    yield tokenizer.encode(PROBE).tobytes()


def _of_weights(folder: Path) -> Iterable[bytes]:
    """Yields the config, and for each file of weights its name, its size and parts of it."""
    if (folder / "config.json").exists():
        yield (folder / "config.json").read_bytes()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    for file in files:
        size = file.stat().st_size
        yield f"{file.name} {size}".encode()
        with file.open("rb") as stream:
            for part in range(SAMPLES):
                stream.seek(max(size - SAMPLE, 0) * part // (SAMPLES - 1))
                yield stream.read(SAMPLE)


def _digest(parts: Iterable[bytes]) -> str:
    """Returns 16 hexadecimal digits of the parts' SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()[:16]
