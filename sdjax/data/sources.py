"""Reads the rows of a data set from files, the web, the Hugging Face hub or TFDS.

A source is one of
    FILE.parquet, FILE.json, FILE.jsonl, FILE.csv   a local file
    https://HOST/.../FILE.parquet                   a file on the web, fetched once into the cache
    hf://datasets/OWNER/NAME[@REVISION][/PATTERN]   files of a Hugging Face data set
    FOLDER[:SPLIT]                                  a TFDS data directory, FOLDER/NAME/VERSION
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import fnmatch
import hashlib
import http.client
import json
import os
import re
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sdjax.data.rows import Broken
from sdjax.errors import UserError
from sdjax.io import hub, network, progress

Row = tuple[int, dict[str, Any] | Broken]
# The key of a TFDS data set's metadata that lists the columns whose text is JSON.
JSON_COLUMNS = "json_columns"
MEGABYTE = 1_000_000
_SPACE = re.compile(r"\s*")
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def read_rows(source: str) -> Iterator[Row]:
    """Yields (row number from 1, row).

    A .json or .jsonl file holds one array of objects, or one object per line, in UTF-8. A row that
    is no JSON object is yielded as Broken. A .csv file begins with a line of names. Raises
    UserError for a source that cannot be read.
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
        raise UserError(f"{source}: no such file: {_missing(source)}")
    return (Path(source),)


def _missing(source: str) -> str:
    """Returns the remedy for a path without a file."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not source.endswith(SUFFIXES):
        return f"a data set of the hub reads hf://datasets/{source}"
    return "correct the path"


def _reader(file: Path) -> Callable[[Path], Iterator[Row]]:
    readers = {".jsonl": _json, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    if file.suffix not in readers:
        packed = file.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip")
        remedy = "unpack it" if packed else "convert it"
        raise UserError(f"{file}: is none of {', '.join(readers)}: {remedy}")
    return readers[file.suffix]


def _hub(source: str) -> tuple[Path, ...]:
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", source)
    if match is None:
        raise UserError(f"{source}: should read hf://datasets/OWNER/NAME[@REVISION][/PATTERN]")
    name, revision, pattern = match.groups()
    pattern = pattern or "*"
    # Do not fetch archives and images that a broad pattern matches too.
    patterns = [pattern + s for s in SUFFIXES] if pattern.endswith("*") else [pattern]
    try:
        folder = hub.data_set(name, revision, patterns)
    except UserError as error:
        raise UserError(f"{source}: cannot be fetched ({error})") from None
    inside = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))}
    found = {
        path: file
        for path, file in inside.items()
        if path.endswith(SUFFIXES) and fnmatch.fnmatch(path, pattern) and file.is_file()
    }
    if not found:
        names = hub.listed(name, revision) or [p for p, file in inside.items() if file.is_file()]
        known = f"; it has {', '.join(names[:20])}" if names else ""
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{source}: none of the data set's {kinds} files matches{known}")
    _check_parts(source, found)
    hub.check(list(found.values()))
    return tuple(found.values())


def _check_parts(source: str, found: Collection[str]) -> None:
    """Raises UserError if the cache has only some parts of a file, NAME-00000-of-00005."""
    parts: dict[tuple[str, int], int] = {}
    for path in found:
        if match := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.\w+", path):
            key = match[1], int(match[2])
            parts[key] = parts.get(key, 0) + 1
    for (path, count), there in parts.items():
        if there < count and not source.endswith(tuple(found)):
            raise UserError(
                f"{source}: the cache has {there} of the {count} parts of {path}; fetch the others "
                "with a network, without HF_HUB_OFFLINE"
            )


def _fetched(url: str) -> Path:
    """Returns the local copy of a file on the web."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sdjax"
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    file = cache / f"{digest}-{urllib.parse.urlsplit(url).path.rpartition('/')[2]}"
    if file.is_file():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            data = b"".join(_parts(url, reply))
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({network.why(error)})") from None
    # Write under another name first, so that an interrupted run leaves no half file.
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as partial:
        partial.write(data)
    Path(partial.name).replace(file)
    return file


def _parts(url: str, reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yields the content of a reply in parts; raises IncompleteRead if its end is missing."""
    total = None if reply.length is None else reply.length // MEGABYTE
    parts = iter(lambda: reply.read(MEGABYTE), b"")
    yield from progress.told(parts, f"fetching {url}", "MB", total)
    if reply.length:
        raise http.client.IncompleteRead(b"", reply.length)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# The first bytes of text in encodings other than UTF-8.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def _json(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            raise UserError(f"{file}: is {encoding} text: save it as UTF-8")
    if b"\0" in start[:4]:  # JSON begins with two characters of one byte each
        raise UserError(f"{file}: is UTF-16 or UTF-32 text, or no text: save it as UTF-8")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    # One object over several lines is a row too.
    if text.startswith(b"[") or text.partition(b"\n")[0].strip() == b"{":
        return _json_whole(file)
    return _json_lines(file)


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    value = _value(line.strip())
                except (ValueError, RecursionError) as error:
                    yield number, Broken(f"is not JSON ({_json_fault(error)})")
                else:
                    yield number, _checked(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of the pairs; raises ValueError if two have one key."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _value(text: bytes) -> Any:
    return _DECODER.decode(text.decode("utf-8-sig"))


def _checked(value: Any) -> dict[str, Any] | Broken:
    if isinstance(value, dict):
        return value
    return Broken(f"is a JSON {type(value).__name__}, not an object")


def _json_whole(file: Path) -> Iterator[Row]:
    """Yields the rows of a file that holds one JSON value: an array, or one row."""
    text = file.read_bytes()
    try:
        values = _value(text)
    except (ValueError, RecursionError) as error:
        row = _broken_element(text, error)
        raise UserError(
            f"{file}:{row}: is not JSON ({_json_fault(error)}); mend the row: in an array the rows "
            "after it cannot be found"
        ) from None
    for number, value in enumerate(values if isinstance(values, list) else [values], start=1):
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
        at = array.index("[") + 1
        while True:
            _, at = _DECODER.raw_decode(array, _SPACE.match(array, at).end())  # type: ignore[union-attr]
            comma = _SPACE.match(array, at).end()  # type: ignore[union-attr]
            if array[comma : comma + 1] != ",":
                break
            at, number = comma + 1, number + 1
    return number


def _csv(file: Path) -> Iterator[Row]:
    """Yields the rows of a comma-separated file, whose first line names the columns; all texts."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream, strict=True), start=1):
                if None in row or None in row.values():
                    yield number, Broken("has another number of fields than the first line")
                else:
                    yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as CSV ({_first_line(error)}); save it as UTF-8, separated by "
            "commas"
        ) from None


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
        raise UserError(
            f"{folder}: is no TFDS data directory ({_first_line(error)}); name a file in it"
        ) from None
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
    if name in ("prompt", "messages", "reward_model", "extra_info") and isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            inner = json.loads(value)
            if isinstance(inner, dict) or (
                isinstance(inner, list) and all(isinstance(i, dict) for i in inner)
            ):
                return inner
    return value
