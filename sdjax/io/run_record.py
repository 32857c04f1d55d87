"""Holds a run to its record: config.json, and run.json with what made it and what was changed.

A resumed run goes on with the config, the data and the model of its record. What differs is refused
unless the command names it (--allow), and then recorded with the step after which it differs. Code
may differ without being named; it is recorded in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import code_files, environment
from sdjax.io.files import write_text
from sdjax.io.redact import redact

CONFIG, RECORD = "config.json", "run.json"

NOT_COMPARED = ("out", "resume", "allow", "profile", "replay")
"""Fields that say where and how the program is started."""

SERVER = ("folder", "concurrency", "timeout_s", "retries", "key_variable")
JUDGE = tuple(f"task.judge.{name}" for name in SERVER if name != "folder")
FREE: dict[str, tuple[str, ...]] = {
    "Train": (
        *("steps", "alarm", "checkpoint", "log", "on_step", "on_evaluation", "optim.most_skipped"),
        *(f"rollout.server.{name}" for name in SERVER),
        *JUDGE,
    ),
    "SFT": (
        *("steps", "epochs", "log_every", "checkpoint", "log", "on_step", "on_evaluation"),
        *("optim.most_skipped", *JUDGE),
    ),
    "Evaluate": ("lexicon", "plots", "eval.every", *(f"server.{name}" for name in SERVER), *JUDGE),
    "Study": ("lexicon", "traces", "eval.every", *(f"server.{name}" for name in SERVER), *JUDGE),
    # Each training of a sweep is compared with its own record.
    "Sweep": ("axis", "values", "runs", "report"),
}
"""Fields, or whole sections, of each job that may change in a resumed run without being named.

They change no number that is computed. They say how far a run goes, what it keeps and shows, and
how it asks a server. In answers that exist, a lexicon only counts words.
"""

UNITS = {
    **dict.fromkeys(("Train", "SFT"), "from step {next} on"),
    **dict.fromkeys(("Evaluate", "Study"), "after {after} answers"),
    "Sweep": "after {after} trainings",
}
"""How a change says where it begins."""

_LIMITS = (
    *("max_prompt_tokens", "rollout.max_prompt_tokens", "rollout.enable_thinking"),
    *("enable_thinking", "max_tokens", "model"),
)
EXPLAINED = {
    "data": ("task", "data", "source", "turns", "split", "tried", *_LIMITS),
    "held_out": ("task", "out_of_domain", "data", "eval", *_LIMITS),
    "tokenizer": ("model",),
    "template": ("model",),
    "weights": ("model",),
    "revision": ("model",),
    "teacher": ("teacher",),
}
"""Each fingerprint, with the fields that change what it stands for. Beside a change of such a field
it need not be named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldChange:
    """A field, or a fingerprint, whose value differs from that of the record."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.old)} -> {_shown(self.new)}"


def check_config(place: Any, cfg: config.Job, after: int) -> list[FieldChange]:
    """Returns the fields that differ from the record of a run directory; [] without a record.

    `after` is how much of the run is done: steps of its newest checkpoint, or answers. Raises
    UserError for fields that neither `allow` names nor FREE has.
    """
    allow = getattr(cfg, "allow", ())
    if not isinstance(cfg, config.Sweep):  # Its trainings check the names.
        _check_names(allow, cfg)
    changes = [] if (record := _read(place)) is None else _differences(record, cfg, after)
    if any(c.name == "class" for c in changes):
        raise UserError(f"out is {str(place)!r}: it holds a run of another job; choose another out")
    free = FREE[type(cfg).__name__]
    refused = [c for c in changes if not _is_in(c.name, (*free, *allow))]
    _refuse(place, refused, "made with other fields")
    return changes


def check_fingerprints(
    place: Any, cfg: config.Job, after: int, fingerprints: Mapping[str, str]
) -> None:
    """Raises UserError for fingerprints that differ from the record, unless allowed or explained.

    A change of the config explains those that EXPLAINED has for its field.
    """
    record = _read(place)
    if record is None:
        return
    changed = [c.name for c in _differences(record, cfg, after)]
    refused = []
    for change in _marks_changed(record, after, fingerprints):
        explained = any(_is_in(name, EXPLAINED[change.name]) for name in changed)
        if not explained and not _is_in(change.name, getattr(cfg, "allow", ())):
            refused.append(change)
    _refuse(place, refused, "made with other data or another model")


def write(folder: Path, cfg: config.Job, after: int, fingerprints: Mapping[str, str]) -> None:
    """Writes config.json and run.json of a run that begins, or goes on from `after`.

    Prints a line for each value that differs from here on. Values that no kept step or answer has
    seen leave no trace.
    """
    record = _read(folder) if after else None
    old = record or {"starts": _starts(folder)}
    kept = [c for c in old.get("changes", []) if c["after"] < after]
    new, edited, code = [], [], code_files.checksums()
    if record is not None:
        new = _differences(record, cfg, after) + _marks_changed(record, after, fingerprints)
        edited = _code_changed(record, after, code)
    where = UNITS[type(cfg).__name__].format(after=after, next=after + 1) if new or edited else ""
    for change in new:
        print(f"changed {where}: {redact(str(change))}", flush=True)
    if edited:
        files = code_files.listed(c.name for c in edited)
        print(f"changed {where}: the code of {files}", flush=True)
    text = {
        "starts": [*old["starts"], {"after": after, **_now()}],
        "fingerprints": dict(fingerprints),
        "changes": kept + [{"after": after, **dataclasses.asdict(c)} for c in (*new, *edited)],
        "code": code,
    }
    # The record comes first: with it alone, the older config is still compared rightly.
    write_text(folder / RECORD, json.dumps(text, indent=2) + "\n")
    write_text(folder / CONFIG, json.dumps(config.to_public(cfg), indent=2) + "\n")


def _now() -> dict[str, Any]:
    """Returns the time, the command, the versions and the devices."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": redact(shlex.join(["python", "-m", "sdjax.main", *sys.argv[1:]])),
        **environment.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
    }


def _read(place: Any) -> dict[str, Any] | None:
    """Returns run.json with the config under "config"; None where a directory has no config.

    A run of an earlier version has no run.json, and no fingerprints to compare.
    """
    file = place / CONFIG
    if not file.exists():
        return None
    return {"starts": [], **_json(place / RECORD), "config": _json(file)}


def _json(file: Any) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); choose another --out") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object; choose another --out")
    return found


def _starts(folder: Path) -> list[Any]:
    return list(_json(folder / RECORD).get("starts", []))


def _undone(values: Mapping[str, Any], record: Mapping[str, Any], after: int) -> dict[str, Any]:
    """Returns values by name without the changes that no step before `after` has seen."""
    out = dict(values)
    for change in reversed(record.get("changes", [])):
        if change["after"] >= after and change["name"] in out:
            out[change["name"]] = change["old"]
    return out


def _differences(record: Mapping[str, Any], cfg: config.Job, after: int) -> list[FieldChange]:
    """Returns the fields of a config that differ from those that the run's last step has seen.

    A field that the record lacks, as that of an earlier version does, had its default.
    """
    given = config.flat(config.to_public(cfg))
    defaults = json.loads(json.dumps(dict(_defaults(cfg)), default=str))
    before = {name: value for name, value in defaults.items() if name in given}
    before |= _undone(config.flat(record["config"]), record, after)
    return [
        FieldChange(name=name, old=before.get(name), new=given.get(name))
        for name in {**given, **before}
        if not _is_in(name, NOT_COMPARED) and before.get(name) != given.get(name)
    ]


def _marks_changed(
    record: Mapping[str, Any], after: int, fingerprints: Mapping[str, str]
) -> list[FieldChange]:
    """Returns the fingerprints that differ from recorded ones."""
    before = _undone(record.get("fingerprints", {}), record, after)
    return [
        FieldChange(name=name, old=before[name], new=value)
        for name, value in fingerprints.items()
        if name in before and before[name] != value
    ]


def _code_changed(
    record: Mapping[str, Any], after: int, code: Mapping[str, str]
) -> list[FieldChange]:
    """Returns the files of code that differ from those that the run's last step has seen.

    The checksum of a file that one side lacks is None. A run of an earlier version recorded none.
    """
    if "code" not in record:
        return []
    before = _undone(dict.fromkeys(code) | record["code"], record, after)
    return [
        FieldChange(name=name, old=old, new=code.get(name))
        for name, old in sorted(before.items())
        if old != code.get(name)
    ]


def _defaults(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and default of each field of a config and of its sections."""
    for f in dataclasses.fields(section):
        value, name = getattr(section, f.name), f"{prefix}{f.name}"
        default: Any = f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        for key, inner in value.items() if isinstance(value, dict) else ((None, value),):
            if dataclasses.is_dataclass(inner):
                yield from _defaults(inner, f"{name}." if key is None else f"{name}.{key}.")
        if dataclasses.is_dataclass(default):
            plain = config.flat(config.to_dict(default), f"{name}.")
            yield from plain.items()
        elif default is not dataclasses.MISSING and not isinstance(default, dict):
            yield name, default


def _is_in(name: str, paths: Iterable[str]) -> bool:
    """Returns whether a field is one of these, or in one of these sections."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _check_names(allow: Sequence[str], cfg: config.Job) -> None:
    """Raises UserError for a name of `allow` that is neither a field, a section nor a
    fingerprint."""
    fields = [n for n in config.flat(config.to_public(cfg)) if not n.endswith("class")]
    for name in allow:
        if name in EXPLAINED or any(_is_in(field, (name,)) for field in fields):
            continue
        if hasattr(cfg, name.partition(".")[0]) and "." not in name:
            continue  # a field without a value, such as an empty table
        near = difflib.get_close_matches(name, [*fields, *EXPLAINED], n=1)
        remedy = f"perhaps you meant {near[0]}" if near else "name fields such as optim.lr"
        raise UserError(f"allow is {name!r}: no such field; {remedy}")


LISTED = 6
"""Changes that an error shows with their values."""


def _refuse(place: Any, changes: Sequence[FieldChange], why: str) -> None:
    """Raises UserError with the first changes and the names of all, if there is one."""
    if changes:
        listed = ", ".join(map(str, changes[:LISTED]))
        if len(changes) > LISTED:
            listed += f" and {len(changes) - LISTED} more"
        sections = {c.name.removesuffix(".class") for c in changes if c.name.endswith(".class")}
        alone = [c.name for c in changes if not _is_in(c.name, sections)]
        names = " ".join([*sorted(sections), *alone])
        raise UserError(
            f"{place} was {why}: {listed}; give the old ones, choose another --out, or go on with "
            f"the new ones: --resume --allow {names}"
        )


def _shown(value: Any) -> str:
    """Returns a value as the command line takes it, cut at 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = text if text and text.isprintable() else repr(text)
    return text if len(text) <= 60 else f"{text[:57]}..."
