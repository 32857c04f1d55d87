"""Reads the rows of a data set from files, the web, the Hugging Face hub or TFDS.

A source is one of
    FILE.parquet, FILE.json, FILE.jsonl             a local file
    https://HOST/.../FILE.parquet                   a file on the web, fetched once into the cache
    hf://datasets/OWNER/NAME[@REVISION][/PATTERN]   files of a Hugging Face data set
    FOLDER[:SPLIT]                                  a TFDS data directory, FOLDER/NAME/VERSION
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import http.client
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdjax.data.rows import Broken
from sdjax.errors import UserError
from sdjax.io import hub

Row = tuple[int, dict[str, Any] | Broken]
# The key of a TFDS data set's metadata that lists the columns whose text is JSON.
JSON_COLUMNS = "json_columns"
_SPACE = re.compile(r"\s*")
SUFFIXES = (".parquet", ".jsonl", ".json")


def read_rows(source: str) -> Iterator[Row]:
    """Yields (row number from 1, row).

    A .json file holds one array of objects, or one object per line. A row that is no JSON object
    is yielded as Broken. Raises UserError for a source that cannot be read.
    """
    folder, _, split = source.partition(":")
    if "://" not in source and Path(folder).is_dir():
        yield from _tfds(Path(folder), split)
        return
    earlier = 0
    for file in files(source):
        number = 0
        for number, row in _reader(file)(file):
            yield earlier + number, row
        earlier += number


def files(source: str) -> tuple[Path, ...]:
    """Returns the local files of a source; fetches those that are not local."""
    if source.startswith("hf://"):
        return _hub(source)
    if source.startswith(("https://", "http://")):
        return (_fetched(source),)
    if not Path(source).is_file():
        raise UserError(f"{source}: no such file: correct the path")
    return (Path(source),)


def _reader(file: Path) -> Callable[[Path], Iterator[Row]]:
    readers = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
    if file.suffix not in readers:
        raise UserError(f"{file}: is none of {', '.join(readers)}: convert it")
    return readers[file.suffix]


def _hub(source: str) -> tuple[Path, ...]:
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", source)
    if match is None:
        raise UserError(f"{source}: should read hf://datasets/OWNER/NAME[@REVISION][/PATTERN]")
    import huggingface_hub

    name, revision, pattern = match.groups()
    try:
        listed = huggingface_hub.list_repo_files(name, repo_type="dataset", revision=revision)
        wanted = [
            f for f in sorted(listed) if f.endswith(SUFFIXES) and fnmatch.fnmatch(f, pattern or "*")
        ]
        if not wanted:
            raise UserError(f"{source}: none of the data set's files matches; it has {listed[:20]}")
        fetched = [
            Path(huggingface_hub.hf_hub_download(name, f, repo_type="dataset", revision=revision))
            for f in wanted
        ]
        hub.check(fetched)
        return tuple(fetched)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: cannot be fetched ({_first_line(error)})") from None


def _fetched(url: str) -> Path:
    """Returns the local copy of a file on the web."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sdjax"
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    file = cache / f"{digest}-{url.rpartition('/')[2]}"
    if file.is_file():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            data = reply.read()
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({_first_line(error)})") from None
    # Write under another name first, so that an interrupted run leaves no half file.
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as partial:
        partial.write(data)
    Path(partial.name).replace(file)
    return file


def _first_line(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and error.reason:
        error = error.reason if isinstance(error.reason, Exception) else error
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _json(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        first = stream.read(1)
        while first.isspace():
            first = stream.read(1)
    return _json_array(file) if first == b"[" else _json_lines(file)


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    value = json.loads(line.strip())
                except (ValueError, RecursionError) as error:
                    yield number, Broken(f"is not JSON ({_json_fault(error)})")
                else:
                    yield number, _checked(value)


def _checked(value: Any) -> dict[str, Any] | Broken:
    if isinstance(value, dict):
        return value
    return Broken(f"is a JSON {type(value).__name__}, not an object")


def _json_array(file: Path) -> Iterator[Row]:
    text = file.read_bytes()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        row = _broken_element(text, error)
        raise UserError(
            f"{file}:{row}: is not JSON ({_json_fault(error)}); mend the row: in an array the rows "
            "after it cannot be found"
        ) from None
    for number, value in enumerate(values, start=1):
        yield number, _checked(value)


def _json_fault(error: Exception) -> str:
    """Returns the error and its place in the text."""
    if not isinstance(error, json.JSONDecodeError):
        return _first_line(error)
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{error.msg.removesuffix(' at')}, {line}column {error.colno}"


def _broken_element(text: bytes, error: Exception) -> int:
    """Returns the number of the first element of an array that is not JSON."""
    number = 1
    readable = text[: error.start] if isinstance(error, UnicodeDecodeError) else text
    with contextlib.suppress(ValueError, RecursionError):
        array = readable.decode()
        decoder, at = json.JSONDecoder(), array.index("[") + 1
        while True:
            _, at = decoder.raw_decode(array, _SPACE.match(array, at).end())  # type: ignore[union-attr]
            comma = _SPACE.match(array, at).end()  # type: ignore[union-attr]
            if array[comma : comma + 1] != ",":
                break
            at, number = comma + 1, number + 1
    return number


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {n: _decoded(n, value) for n, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: cannot be read as parquet ({_first_line(error)}); write or fetch it again"
        ) from None


def _tfds(folder: Path, split: str) -> Iterator[Row]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: is no TFDS data directory ({_first_line(error)})") from None
    splits = sorted(builder.info.splits)
    if split not in splits and (split or len(splits) != 1):
        raise UserError(f"{folder}: choose a split, {folder}:SPLIT with one of {', '.join(splits)}")
    encoded = set((builder.info.metadata or {}).get(JSON_COLUMNS, ()))
    rows = builder.as_data_source(split or splits[0])
    for index in range(len(rows)):
        texts = {name: bytes(value).decode("utf-8") for name, value in rows[index].items()}
        yield (
            index + 1,
            {n: json.loads(text) if n in encoded else text for n, text in texts.items()},
        )


def _decoded(name: str, value: Any) -> Any:
    """Returns the value of a parquet column; some files write their structs as JSON text."""
    if name in ("prompt", "reward_model", "extra_info") and isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            inner = json.loads(value)
            if isinstance(inner, dict) or (
                isinstance(inner, list) and all(isinstance(i, dict) for i in inner)
            ):
                return inner
    return value
