"""Finds the files of a Hugging Face data set by its id, its configuration and its split.

An id reads OWNER/NAME[@REVISION][:[CONFIGURATION/]SPLIT], such as openai/gsm8k:main/test. As on the
hub, the names of files and folders tell: a folder is a configuration, and a word such as "train" or
"validation" in a path is a split. Where no path has such a word, all files are the split train.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sdjax.errors import UserError
from sdjax.io import hub

_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([^/:]+))?(?::(?:([\w.-]+)/)?([\w-]+))?")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Each split, with the words that name it in a path."""
ABOUT = ("dataset_infos.json", "dataset_info.json", "state.json")
"""Files that describe a data set and hold no rows."""


def is_id(source: str, suffixes: Sequence[str]) -> bool:
    """Returns whether a source is the id of a data set: no file, and none of these suffixes."""
    match = _ID.fullmatch(source)
    return match is not None and not source.endswith(tuple(suffixes)) and not Path(source).exists()


def with_split(source: str, split: str) -> str:
    """Returns an id with this split, unless it names one."""
    return source if ":" in source else f"{source}:{split}"


def found(source: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Returns the local files of an id by their paths in the data set; fetches them first.

    Raises UserError, which lists what there is, if no file or no single configuration fits.
    """
    match = _ID.fullmatch(source)
    assert match is not None
    name, revision, configuration, split = match.groups()
    try:
        # Without a network there is no list, and the cache has what an earlier run fetched.
        listed = hub.listed(name, revision) or _cached(name, revision, suffixes)
        chosen = choose(name, listed, suffixes, configuration or "", split or "train")
        folder = hub.data_set(name, revision, chosen)
    except UserError as error:
        raise UserError(f"{source}: no such file here, and on the hub: {error}") from None
    return {path: folder / path for path in chosen if (folder / path).is_file()}


def _cached(name: str, revision: str | None, suffixes: Sequence[str]) -> list[str]:
    folder = hub.data_set(name, revision, [f"*{suffix}" for suffix in suffixes])
    return [f.relative_to(folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]


def choose(
    name: str, paths: Sequence[str], suffixes: Sequence[str], configuration: str, split: str
) -> list[str]:
    """Returns the paths of one split of one configuration, all in one format.

    `suffixes` are the formats in order of preference. Without `configuration` there must be one.
    """
    data = [p for p in sorted(paths) if p.endswith(tuple(suffixes)) and not p.endswith(ABOUT)]
    if not data:
        raise UserError(f"{name} has no {', '.join(suffixes)} files")
    configurations = sorted({_configuration(path) for path in data})
    if configuration and configuration not in configurations:
        raise UserError(f"{name} has no {configuration}, but {', '.join(configurations)}")
    data = [p for p in data if not configuration or _configuration(p) == configuration]
    if any(_splits(path) for path in data):
        fitting = [path for path in data if split in _splits(path)]
    else:
        fitting = data if split == "train" else []
    if not fitting:
        there = sorted({s for path in data for s in _splits(path)} or {"train"})
        raise UserError(f"{name} has no split {split}, but {', '.join(there)}")
    of = sorted({_configuration(path) for path in fitting})
    if len(of) > 1:
        raise UserError(
            f"{name} has {', '.join(of)}: name one of them, such as {name}:{of[0]}/{split}"
        )
    form = next(s for s in suffixes if any(path.endswith(s) for path in fitting))
    return [path for path in fitting if path.endswith(form)]


def _words(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.lower()))


def _splits(path: str) -> set[str]:
    """Returns the splits that a path names; the file's own name goes before its folders."""
    for part in (PurePosixPath(path).name, path):
        named = {s for s, words in SPLITS.items() if _words(part) & set(words)}
        if named:
            return named
    return set()


def _configuration(path: str) -> str:
    """Returns the first folder of a path that is neither "data" nor a split, or "default"."""
    words = {word for of_split in SPLITS.values() for word in of_split}
    folders = PurePosixPath(path).parts[:-1]
    return next((f for f in folders if f.lower() not in words | {"data"}), "default")
