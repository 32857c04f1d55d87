"""Reads the rows of a data set from files, the web, the Hugging Face hub or TFDS.

A source is one of
    FILE.parquet, .json, .jsonl, .csv or .tsv       a local file
    https://HOST/.../FILE.parquet                   a file on the web, fetched once into the cache
    OWNER/NAME[@REVISION][:[CONFIGURATION/]SPLIT]   a split of a Hugging Face data set
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
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sdjax.data import hub_sets
from sdjax.data.rows import Broken
from sdjax.errors import UserError, writing
from sdjax.io import hub, network, progress
from sdjax.io.files import replacing

Row = tuple[int, dict[str, Any] | Broken]
# The key of a TFDS data set's metadata that lists the columns whose text is JSON.
JSON_COLUMNS = "json_columns"
MEGABYTE = 1_000_000
# The columns that hold objects or conversations, which some files write as JSON text.
OBJECTS = ("reward_model", "extra_info")
CONVERSATIONS = ("prompt", "completion", "messages", "conversations")
_SPACE = re.compile(r"\s*")
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


def read_rows(source: str) -> Iterator[Row]:
    """Yields (row number from 1, row).

    A .json or .jsonl file holds one array of objects, or one object per line, in UTF-8. A .csv or
    .tsv file begins with the names of its columns; its row number is the line on which a row
    begins. A row that cannot be parsed is yielded as Broken. Raises UserError for a source that
    cannot be read.
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
    if hub_sets.is_id(source, SUFFIXES):
        found = hub_sets.found(source, SUFFIXES)
        _check_parts(source, found)
        hub.check(list(found.values()))
        return tuple(found.values())
    if not Path(source).is_file():
        raise UserError(f"{source}: no such file: correct the path")
    return (Path(source),)


def _reader(file: Path) -> Callable[[Path], Iterator[Row]]:
    readers = {".jsonl": _json, ".json": _json, ".parquet": _parquet, ".csv": _csv, ".tsv": _csv}
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
    found = _one_form(found)
    if not found:
        names = hub.listed(name, revision) or [p for p, file in inside.items() if file.is_file()]
        known = f"; it has {', '.join(names[:20])}" if names else ""
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{source}: none of the data set's {kinds} files matches{known}")
    _check_parts(source, found)
    hub.check(list(found.values()))
    return tuple(found.values())


def _one_form(found: dict[str, Path]) -> dict[str, Path]:
    """Returns the files without tables of text that may repeat what the other files hold."""
    others = {path: f for path, f in found.items() if f.suffix not in (".csv", ".tsv")}
    return others or found


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
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            data = b"".join(_parts(url, reply))
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({network.why(error)})") from None
    with replacing(file) as new:
        new.write_bytes(data)
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


def _start(file: Path) -> bytes:
    """Returns the beginning of a UTF-8 text file; raises UserError for another encoding."""
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            raise UserError(f"{file}: is {encoding} text: save it as UTF-8")
    if b"\0" in start[:4]:  # JSON and names of columns begin with characters of one byte each
        raise UserError(f"{file}: is UTF-16 or UTF-32 text, or no text: save it as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)


def _json(file: Path) -> Iterator[Row]:
    text = _start(file).lstrip()
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
    """Yields the rows of a file whose first line names the columns; an empty cell is None."""
    header = next(iter(_start(file).decode("utf-8", "replace").strip().splitlines()), "")
    # Spreadsheets separate cells by semicolons where the comma is the decimal point.
    separator = max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    csv.field_size_limit(1 << 30)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from _csv_rows(file, csv.reader(stream, delimiter=separator, strict=True))
    except UnicodeDecodeError:
        data = file.read_bytes()
        line = data[: _bad_byte(data)].count(b"\n") + 1
        raise UserError(f"{file}:{line}: is not UTF-8: save the file as UTF-8") from None


def _bad_byte(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _csv_rows(file: Path, reader: Any) -> Iterator[Row]:
    """Yields the rows of a csv reader, which stands before the names of the columns."""
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = _first_line(error)
            if reason == "unexpected end of data":
                reason = "a quotation mark is never closed"
            if not names:
                raise UserError(f"{file}:{line}: is not CSV ({reason}); mend the line") from None
            yield line, Broken(f"is not CSV ({reason})")
            continue
        if cells is None:
            return
        if not any(cells):  # an empty line
            continue
        if not names:
            names = _column_names(file, cells)
        elif len(cells) != len(names):
            yield (
                line,
                Broken(
                    f"has {len(cells)} cells for {len(names)} columns ({', '.join(names[:12])}): "
                    'put "quotation marks" around a cell that holds a separator'
                ),
            )
        else:
            row = zip(names, cells, strict=True)
            yield line, {name: _cell(name, text) if text else None for name, text in row}


def _column_names(file: Path, cells: list[str]) -> list[str]:
    """Returns the names of the columns; a column without a name has its number."""
    names = [cell.strip() or f"column {n}" for n, cell in enumerate(cells, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{file}: the column {name!r} occurs twice: rename one of them")
    return names


def _cell(name: str, text: str) -> Any:
    """Returns the value of a cell: JSON if it can be nothing else, or else its text."""
    if name == "choices" and text.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return _decoded(name, text)


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
    """Returns the value of a column; some files write their structs as JSON text."""
    if name in (*OBJECTS, *CONVERSATIONS) and isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            inner = json.loads(value)
            # A prompt or a completion may be JSON text itself, but hardly a list of messages.
            if isinstance(inner, dict) if name in OBJECTS else _are_messages(inner):
                return inner
    return value


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in value
    )
