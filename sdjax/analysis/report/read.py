"""Reads run directories: config, metrics, warnings, evaluations, rollouts."""

from __future__ import annotations

import functools
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from sdjax.analysis import scores
from sdjax.errors import UserError

log = logging.getLogger(__name__)

REMEDY = "mend or remove the file"


@dataclass(frozen=True)
class Bounds:
    """The 95 % interval of an accuracy, and the number of questions that it is of."""

    low: float
    high: float
    questions: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The files of one run directory.

    `metrics` are the lines of metrics.jsonl: numbers by name, with "step". `evaluations` are those
    of evaluations.json, in order of "step". `rollouts` and `answers` are files that `rows` reads,
    in order. `record` is run.json: what made the run and what was changed in it; {} for a run of an
    earlier version. `warnings` are the lines of warnings.jsonl: "step", "kind" and "text"; None
    without the file.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluations: list[dict[str, Any]]
    rollouts: tuple[Path, ...]
    record: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, Any]] | None = None
    answers: tuple[Path, ...] = ()

    @property
    def steps(self) -> int:
        """The last step of which there are metrics; 0 without any."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def lexicon(self) -> str:
        """The lexicon by which the run counts and marks epistemic words."""
        return str(self.config.get("lexicon", "paper"))

    @functools.cached_property
    def bounds(self) -> dict[str, dict[int, Bounds]]:
        """The intervals of held-out accuracies by metric and step, as evaluations.json has them."""
        out: dict[str, dict[int, Bounds]] = {}
        for evaluation in self.evaluations:
            for name, figures in sets(evaluation):
                where = "eval" if name == IN_DOMAIN else f"ood/{name}"
                questions = int(figures["accuracy"]["examples"])
                for score, found in figures["accuracy"].items():
                    if isinstance(found, Mapping):
                        bounds = Bounds(float(found["low"]), float(found["high"]), questions)
                        of_score = out.setdefault(f"{where}/{score}", {})
                        of_score[int(evaluation["step"])] = bounds
        return out


def runs(folders: Sequence[str]) -> list[RunRecord]:
    """Returns the runs in these directories.

    Raises UserError if a directory holds no training, or if one is given twice.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        for name in ("config.json", "metrics.jsonl"):
            if not (path / name).is_file():
                raise UserError(
                    f"runs: {path}: no {name} there; give the run directory of a training"
                )
    seen = [path.resolve() for path in paths]
    for path, full in zip(paths, seen, strict=True):
        if seen.count(full) > 1:
            raise UserError(f"runs: {path} is named {seen.count(full)} times; name it once")
    return [_run(path, name) for path, name in zip(paths, names(seen), strict=True)]


def names(folders: Sequence[Path]) -> list[str]:
    """Returns for each path its shortest ending that no other path has."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        ends = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(ends)) == len(ends):
            break
    # A file name may hold bytes that are not UTF-8.
    return [end.encode("utf-8", "replace").decode() for end in ends]


def _run(folder: Path, name: str) -> RunRecord:
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: not a config; {REMEDY}")
    metrics = [
        _metrics(folder / "metrics.jsonl", number, row)
        for number, row in rows(folder / "metrics.jsonl")
    ]
    answers = tuple(sorted((folder / "answers").glob("*.jsonl"), key=_natural))
    return RunRecord(
        name=name,
        folder=folder,
        config=config,
        metrics=sorted(metrics, key=lambda row: row["step"]),
        evaluations=_evaluations(folder, answers),
        rollouts=rollout_files(folder),
        record=_record(folder / "run.json"),
        warnings=_warnings(folder / "warnings.jsonl"),
        answers=answers,
    )


def _record(file: Path) -> dict[str, Any]:
    """Returns run.json; {} without one. Raises UserError if it is not one of sdjax."""
    found = _json(file) if file.is_file() else {}
    try:
        for start in found.get("starts", []):
            dict(start)
        for change in found.get("changes", []):
            str(change["name"]), int(change["after"]), change["old"], change["new"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file}: not a record of a run; {REMEDY}") from None
    return found


def _warnings(file: Path) -> list[dict[str, Any]] | None:
    """Returns the lines of warnings.jsonl in order; None without the file."""
    if not file.is_file():
        return None
    found = []
    for number, row in rows(file):
        step = step_of(file, number, row)
        found.append({"step": step} | {name: str(row.get(name, "")) for name in ("kind", "text")})
    return sorted(found, key=lambda row: row["step"])


def rollout_files(folder: Path) -> tuple[Path, ...]:
    """Returns a run's files of rollouts in order; a run has one or several, gzipped or not."""
    found = [*folder.glob("rollouts*.jsonl*"), *folder.glob("rollouts/*.jsonl*")]
    return tuple(sorted((f for f in found if f.suffix in (".jsonl", ".gz")), key=_natural))


def _natural(path: Path) -> list[tuple[int, str]]:
    # Numbers compare as numbers, so that rollouts-9 comes before rollouts-10.
    parts = re.findall(r"\d+|\D+", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); {REMEDY}") from None


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number, from 1, and the object of each line of a JSONL file, gzipped or not.

    If the file ends inside a line, that line is left out with a warning, because a run may still be
    writing or may have been killed. Raises UserError with file and line if a line is not an object.
    """
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not line.endswith(b"\n"):
                        log.warning("%s:%d: the file ends inside a line; left out", file, number)
                        return
                    reason = " ".join(str(error).split())[:100]
                    raise UserError(f"{file}:{number}: not JSON ({reason}); {REMEDY}") from None
                if not isinstance(row, dict):
                    raise UserError(f"{file}:{number}: not a JSON object; {REMEDY}")
                yield number, row
    except EOFError:
        log.warning("%s: the file ends after line %d, inside what gzip wrote", file, number)
    except (OSError, zlib.error) as error:
        raise UserError(
            f"{file}, after line {number}: cannot be read ({error}); {REMEDY}"
        ) from None


def _open(file: Path) -> BinaryIO:
    opened = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
    return cast(BinaryIO, opened)


def _metrics(file: Path, number: int, row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line as floats, and the step as int; "NaN" and the like are
    numbers."""
    step_of(file, number, row)
    out: dict[str, float] = {}
    for name, value in row.items():
        try:
            out[name] = row["step"] if name == "step" else float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{file}:{number}: {name} is {value!r}: not a number; {REMEDY}"
            ) from None
    return out


def step_of(file: Path, number: int, row: Mapping[str, Any]) -> int:
    """Returns the step of a line; raises UserError with file and line if it has none."""
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise UserError(f"{file}:{number}: step is {step!r}: not a number of a step; {REMEDY}")
    return step


def _evaluations(folder: Path, answers: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns evaluations.json; for an unfinished run, the scores of its answers instead."""
    file = folder / "evaluations.json"
    if not file.exists():
        return [_scored(answer) for answer in answers]
    found = _json(file)
    if not isinstance(found, list):
        raise UserError(f"{file}: not a list of evaluations; {REMEDY}")
    for number, one in enumerate(found, 1):
        try:
            int(one["step"])
            for _, part in sets(one):
                float(part["accuracy"]["examples"]) + float(part["lengths"]["completions"])
                for score in filter(_is_mapping, part["accuracy"].values()):
                    float(score["low"]) + float(score["high"])
                dict(part["epistemic"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{file}: evaluation {number} is not one of sdjax ({type(error).__name__}: "
                f"{error}); {REMEDY}"
            ) from None
    return sorted(found, key=lambda one: one["step"])


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _scored(file: Path) -> dict[str, Any]:
    by_set: dict[str, list[dict[str, Any]]] = {}
    try:
        for _, row in rows(file):
            by_set.setdefault(row["set"], []).append(row)
        own, *others = [(name, scores.of_rows(part).to_dict()) for name, part in by_set.items()]
        step = int(file.stem)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not all of its lines are answers; {REMEDY}") from None
    return {
        "step": step,
        "lexicon": "paper",
        **own[1],
        **({"out_of_domain": dict(others)} if others else {}),
    }


IN_DOMAIN = "in domain"


def sets(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name and figures of each set of an evaluation: in domain, then the others."""
    yield IN_DOMAIN, evaluation
    yield from evaluation.get("out_of_domain", {}).items()
