"""Builds a TFDS data set from any fixed data set: rows in, ArrayRecord files out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from sdjax.data.rows import Broken
from sdjax.data.sources import JSON_COLUMNS, read_rows
from sdjax.errors import UserError, WriteError, writing


class RowBuilder(tfds.core.GeneratorBasedBuilder):
    """Builds the data set of some sources, one per split, with every column as text.

    Columns that hold other values than texts are written as JSON; the metadata names them.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, sources: dict[str, str], **kwargs: Any) -> None:
        self._sources = sources
        self._columns = _columns(sources)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        encoded = sorted(name for name, is_text in self._columns.items() if not is_text)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in sorted(self._columns)}
            ),
            metadata=tfds.core.MetadataDict({JSON_COLUMNS: encoded}),
            # Keep the order of the rows, because the pipeline that reads them shuffles.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._sources}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for index, row in enumerate(_rows(self._sources[split])):
            yield (
                index,
                {
                    name: row[name] if is_text else json.dumps(row.get(name))
                    for name, is_text in self._columns.items()
                },
            )


def _columns(sources: dict[str, str]) -> dict[str, bool]:
    """Returns for each column whether it holds text in every row."""
    texts: dict[str, int] = {}
    count = 0
    for source in sources.values():
        for row in _rows(source):
            count += 1
            for name, value in row.items():
                texts[name] = texts.get(name, 0) + isinstance(value, str)
    return {name: number == count for name, number in texts.items()}


def _rows(source: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a source; raises UserError for a broken row or a source without rows."""
    number = 0
    for number, row in read_rows(source):
        if isinstance(row, Broken):
            raise UserError(f"{source}:{number}: {row.reason}; mend the row")
        yield row
    if not number:
        raise UserError(f"{source}: has no rows")


def build(name: str, sources: dict[str, str], folder: str) -> tfds.core.DatasetBuilder:
    """Writes a data set into `folder`/`name`/1.0.0 and returns its builder.

    `sources` has one source per split, in the form that `sources.read_rows` takes. Raises
    WriteError if the data set cannot be written; nothing of it remains.
    """
    # A new class, because TFDS names a data set after its builder's class.
    named = type(name, (RowBuilder,), {"name": name, "__module__": __name__})
    builder = named(sources=sources, data_dir=folder)
    try:
        with writing(folder):
            builder.download_and_prepare()
    except RuntimeError as error:
        # ArrayRecord says only in its text that a file cannot be written.
        found = re.search(r"\w+\(\) failed: ([^;]+); ", str(error))
        if found is None:
            raise
        raise WriteError.because(folder, found[1]) from error
    return builder
