"""Scores a model on held-out examples of one or several tasks, in evaluations and in training.

Answers are sampled batch by batch, and every figure is computed from them. A resumed evaluation
therefore reads the answers that answers.jsonl has, and samples the others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.analysis import fork_rates, lengths, scores
from sdjax.analysis.scores import Scores
from sdjax.data.pipeline import drop_overlong
from sdjax.data.rows import Skipped
from sdjax.errors import UserError, writing
from sdjax.io import lease, progress
from sdjax.io.files import to_json, write_text
from sdjax.logs.terminal import closing_table
from sdjax.parallel import hosts
from sdjax.records import Example, Group
from sdjax.rollout.collect import collect
from sdjax.rollout.interface import Sampler, SamplingRequest
from sdjax.tasks import Task
from sdjax.tokenizer import Tokenizer
from sdjax.training import answer_forks, lm_tasks, loaded_model

AnswerRow = dict[str, Any]
PUSH_S = 60.0
"""Least seconds between two copies of the answers to a bucket, because each copies all of them."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out examples of a task that an evaluation uses."""

    name: str
    """Names its figures."""
    task: Task
    examples: Sequence[Example]
    overlong: int
    """Examples that were left out because their prompt is too long."""


@dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Examples that are sampled together: batch `number` of set `index`."""

    held_out: HeldOut
    index: int
    number: int
    examples: Sequence[Example]


def held_out(
    task: Task,
    out_of_domain: Mapping[str, Task],
    cfg: config.Eval,
    tokenizer: Tokenizer,
    limit: int,
    thinking: bool | None,
    *,
    field: str = "max_prompt_tokens",
) -> list[HeldOut]:
    """Returns the sets of an evaluation; that of the task itself is the first.

    A task without held-out examples gives no sets, and says so in a line.

    Args:
        task: What the model is trained or evaluated on.
        out_of_domain: Other tasks, each under the name of its figures.
        cfg: How many examples each set has.
        tokenizer: Measures the prompts.
        limit: The longest prompt in tokens; longer ones are left out.
        thinking: Whether the chat template enables thinking; None leaves that to the template.
        field: The config field that sets the limit.

    Raises:
        UserError: A set beside others is empty, two have one name, or processes have read
            different examples.
    """
    if not len(task.held_out):
        config.require(
            not out_of_domain,
            "out_of_domain",
            sorted(out_of_domain),
            f"needs held-out examples of {task.name} beside it",
        )
        hosts.note(f"{task.name}: no held-out examples, so there is no evaluation")
        note_skipped(task)
        return []
    if task.name in out_of_domain:
        raise UserError(
            f"out_of_domain is {task.name!r}: the task has this name; choose another one"
        )
    sets = []
    for name, part in {task.name: task, **out_of_domain}.items():
        if not len(part.held_out):
            raise UserError(f"{name}: has no held-out examples; leave it out of out_of_domain")
        wanted = min(cfg.examples or len(part.held_out), len(part.held_out))
        kept, dropped = drop_overlong(
            [part.held_out[i] for i in range(wanted)],
            lambda e: len(tokenizer.encode_prompt(e.messages, enable_thinking=thinking)),
            limit,
            "skip",
            field,
        )
        check_same_examples(name, kept)
        sets.append(HeldOut(name=name, task=part, examples=kept, overlong=len(dropped)))
    return sets


def note_held_out(sets: Sequence[HeldOut]) -> None:
    """Prints the number of examples of each set, and the rows of files that are not used."""
    for part in sets:
        hosts.note(f"{part.name}: {len(part.examples)} held out ({part.overlong} left out)")
        note_skipped(part.task)


def batches(sets: Sequence[HeldOut], size: int) -> list[EvalBatch]:
    """Returns the batches of an evaluation in the order of sampling."""
    return [
        EvalBatch(
            held_out=part,
            index=index,
            number=start // size,
            examples=part.examples[start : start + size],
        )
        for index, part in enumerate(sets)
        for start in range(0, len(part.examples), size)
    ]


def answers(
    sampler: Sampler,
    weights: Any,
    tokenizer: Tokenizer,
    plan: Sequence[EvalBatch],
    cfg: config.Eval,
    thinking: bool | None,
) -> Iterator[list[AnswerRow]]:
    """Yields the rows of each batch: `cfg.k` graded completions per example.

    A batch draws with the key fold_in(fold_in(key(seed), set), number). Earlier samples and the
    step of training do not change it, so two models are compared on the same noise.

    Args:
        sampler: Draws the completions.
        weights: What the sampler reads.
        tokenizer: That of the model.
        plan: The batches.
        cfg: How completions are sampled, and how many per example.
        thinking: Whether the chat template enables thinking; None leaves that to the template.
    """
    root = jax.random.key(cfg.seed)
    for batch in plan:
        # All batches of a set have one size and so share a program. The first example of the last
        # batch fills it up, and its further answers are dropped.
        size = min(cfg.batch, len(batch.held_out.examples))
        examples = [*batch.examples, *[batch.examples[0]] * (size - len(batch.examples))]
        request = SamplingRequest(
            prompts=[
                tokenizer.encode_prompt(e.messages, enable_thinking=thinking) for e in examples
            ],
            group_size=cfg.k,
            sampling=cfg,
            key=jax.random.fold_in(jax.random.fold_in(root, batch.index), batch.number),
        )
        is_first = batch is plan[0]  # It compiles.
        said = progress.waiting(f"batch 1 of {len(plan)}") if is_first else nullcontext()
        with said:
            groups = collect(
                sampler,
                weights,
                request,
                examples=examples,
                tokenizer=tokenizer,
                grade_many=batch.held_out.task.grade_many,
            )
        groups = groups[: len(batch.examples)]
        # One process compares, because another may exceed a grader's time limit.
        primary = jax.process_index() == 0
        spellings = hosts.of_first(batch.held_out.task.vote_spellings(groups) if primary else None)
        rows = [
            row
            for group, spelling in zip(groups, spellings, strict=True)
            for row in _rows(batch.held_out.name, group, spelling, tokenizer)
        ]
        if cfg.fork_rate:
            counts = answer_forks.count(sampler, weights, groups)
            rows = [row | more for row, more in zip(rows, counts, strict=True)]
        yield rows


def _rows(
    name: str, group: Group, spellings: Sequence[str | None], tokenizer: Tokenizer
) -> Iterator[AnswerRow]:
    """Yields the row of answers.jsonl of each completion; `spellings` are those of its vote."""
    begun = tokenizer.decode_raw(group.prompt).rstrip().endswith(lengths.OPEN)
    for completion, grade, spelling in zip(group.completions, group.grades, spellings, strict=True):
        thinking = lengths.thinking_tokens(tokenizer.pieces(completion.tokens), begun=begun)
        yield {
            "set": name,
            "id": group.example.id,
            "task": group.example.task,
            "messages": list(group.example.messages),
            "answer": group.example.answer,
            "completion": completion.text,
            "tokens": len(completion.tokens),
            "thinking_tokens": thinking,
            "answer_tokens": len(completion.tokens) - thinking,
            "finish": completion.finish,
            "reward": grade.reward,
            "correct": grade.correct,
            "feedback": grade.feedback,
            "details": grade.details | ({} if spelling is None else {"vote": spelling}),
        }


def jsonl(rows: Sequence[AnswerRow]) -> str:
    """Returns one line of JSON for each row."""
    return "".join(to_json(row) + "\n" for row in rows)


def score(rows: Sequence[AnswerRow], sets: Sequence[HeldOut], lexicon: str) -> dict[str, Scores]:
    """Returns the scores of each set by name; `lexicon` defines the epistemic words."""
    return {p.name: scores.of_rows([r for r in rows if r["set"] == p.name], lexicon) for p in sets}


def to_dict(by_set: Mapping[str, Scores]) -> dict[str, Any]:
    """Returns the scores as plain values for JSON; other sets than the task's in out_of_domain."""
    (_, own), *others = by_set.items()
    out = own.to_dict()
    return out | ({"out_of_domain": {n: s.to_dict() for n, s in others}} if others else {})


def metrics(by_set: Mapping[str, Scores]) -> dict[str, float]:
    """Returns the metrics that training logs: eval/... of its task, ood/NAME/... of other sets."""
    (_, own), *others = by_set.items()
    out = own.metrics("eval")
    for name, other in others:
        out |= other.metrics(f"ood/{name}")
    return out


def check_metric(field: str, name: str, sets: Sequence[HeldOut], cfg: config.Eval) -> None:
    """Raises UserError if evaluations of these sets have no metric of this name.

    `field` is the config field that names the metric.
    """
    config.require(bool(sets), field, name, "needs evaluations: the task has no held-out examples")
    answer: AnswerRow = {
        **dict.fromkeys(("tokens", "thinking_tokens", "answer_tokens"), 1),
        **{"id": "", "completion": "", "finish": "stop", "correct": True},
        **dict.fromkeys(fork_rates.COUNTS if cfg.fork_rate else (), 1),
    }
    rows = []
    for part in sets:
        # Only the grader knows whether its grades have answers that vote.
        details = part.task.grade("", part.examples[0], truncated=False).details
        rows += [answer | {"set": part.name, "details": details}] * cfg.k
    names = metrics(score(rows, sets, "paper"))
    if name not in names:
        raise UserError(f"{field} is {name!r}: must be one of {', '.join(names)}")


def changes(before: dict, after: dict) -> list[tuple[str, float | None, float | None]]:
    """Returns the rows of the closing table: name, figure before, figure after.

    Both evaluations are as `to_dict` gives them.
    """

    def row(name: str, *path: str) -> tuple[str, float | None, float | None]:
        ends = []
        for value in (before, after):
            for key in path:
                value = value[key]
            ends.append(float(value))  # type: ignore[arg-type]
        return name, ends[0], ends[1]

    def verbalization(of: str, *path: str) -> list[tuple[str, float | None, float | None]]:
        return [
            row(f"{of}epistemic words a response", *path, "per_response"),
            row(f"{of}epistemic words per 1,000 tokens", *path, "per_1000_tokens"),
        ]

    def forks(of: str, *path: str) -> list[tuple[str, float | None, float | None]]:
        ends = [before, after]
        for key in path:
            ends = [end[key] for end in ends]
        measured = all("forks" in end for end in ends)
        return [row(f"{of}fork rate", *path, "forks", "rate")] if measured else []

    def accuracies(first: dict, last: dict) -> list[str]:
        found = first["accuracy"].items()
        return [k for k, v in found if isinstance(v, dict) and k in last["accuracy"]]

    return [
        *(row(f"held-out {name}", "accuracy", name, "value") for name in accuracies(before, after)),
        row("mean completion tokens", "lengths", "mean"),
        row("truncated share", "lengths", "truncated"),
        *verbalization("", "epistemic"),
        *forks(""),
        *(
            each
            for other, figures in before.get("out_of_domain", {}).items()
            for each in (
                *(
                    row(f"{other} {name}", "out_of_domain", other, "accuracy", name, "value")
                    for name in accuracies(figures, after["out_of_domain"][other])
                ),
                *verbalization(f"{other} ", "out_of_domain", other, "epistemic"),
                *forks(f"{other} ", "out_of_domain", other),
            )
        ),
        *(
            row(f"{task} {name}", "lm_eval", task, "metrics", name, "value")
            for task, of in before.get("lm_eval", {}).items()
            for name in of["metrics"]
            if name in after.get("lm_eval", {}).get(task, {}).get("metrics", {})
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class EvaluationHistory:
    """The evaluations of a training run."""

    model: loaded_model.LoadedModel
    sets: Sequence[HeldOut]
    cfg: config.Eval
    thinking: bool | None
    """Whether the chat template enables thinking; None leaves that to the template."""
    out: Path
    """The run directory."""
    history: list[dict]
    """The evaluations so far, as `to_dict` gives them with their step."""
    lexicon: str = "paper"
    show: Callable[[int, list[AnswerRow]], None] = lambda step, rows: None
    """Takes the answers of each evaluation, with its step."""
    harness: config.Harness = field(default_factory=config.Harness)
    """Tasks of lm-evaluation-harness that each evaluation scores too."""

    def measure(self, step: int, weights: Any) -> dict[str, float]:
        """Evaluates the model, adds the scores to the history and writes the answers.

        Returns the metrics; {} without sets. `weights` are the sampler's.
        """
        if not self.sets:
            return {}
        plan = batches(self.sets, self.cfg.batch)
        sampler, tokenizer = self.model.sampler, self.model.tokenizer
        by_batch = answers(sampler, weights, tokenizer, plan, self.cfg, self.thinking)
        told = progress.told(by_batch, f"evaluating step {step}", "batches", len(plan))
        rows = [row for batch in told for row in batch]
        by_set = score(rows, self.sets, self.lexicon)
        # Before the history changes, because a signal may end it: the step is then evaluated anew.
        harness = self._harness_figures(weights)
        figures = {"step": step} | to_dict(by_set)
        self.history.append(figures | ({"lm_eval": harness} if harness else {}))
        if jax.process_index() == 0:
            file = self.out / "answers" / f"{step:06d}.jsonl"
            lease.make_folder(file.parent)
            write_text(file, jsonl(rows))
            self.show(step, rows)
        return metrics(by_set) | lm_tasks.metrics(harness)

    def _harness_figures(self, weights: Any) -> lm_tasks.Figures:
        """Returns the figures of the harness's tasks; {} without any."""
        if not self.harness.tasks:
            return {}
        scored = lm_tasks.score(self.model, weights, self.harness, self.cfg, self.thinking)
        return {task: of for _, found, _ in scored for task, of in found.items()}

    def close(self) -> None:
        """Writes evaluations.json and prints the table of what the run changed."""
        if self.history and jax.process_index() == 0:
            text = json.dumps(self.history, indent=2) + "\n"
            write_text(self.out / "evaluations.json", text)
            print(closing_table(changes(self.history[0], self.history[-1])))


def resumed(
    file: Path,
    plan: Sequence[EvalBatch],
    model: loaded_model.LoadedModel,
    cfg: config.Eval,
    thinking: bool | None,
    before: Callable[[int], None] = lambda number: None,
    weights: Callable[[], Any] | None = None,
) -> Iterator[list[AnswerRow]]:
    """Yields the rows of each batch: first those in the file, then new ones, which it appends.

    An unfinished batch in the file is sampled again.

    Args:
        file: The JSONL file of answers.
        plan: The batches.
        model: Samples them.
        cfg: How completions are sampled, and how many per example.
        thinking: Whether the chat template enables thinking; None leaves that to the template.
        before: Called before each sampled batch but the first, with its index among these, from 0.
        weights: Returns the sampler's weights; called only if a batch is sampled. None reads the
            stored model.
    """
    primary = jax.process_index() == 0
    done, text = hosts.of_first(_whole_batches(file, plan, cfg.k) if primary else None)
    if primary and file.exists():
        write_text(file, text)
    lines = map(json.loads, text.splitlines())
    for batch in plan[:done]:
        yield list(itertools.islice(lines, len(batch.examples) * cfg.k))
    if done == len(plan):
        return
    to_sample = (weights or model.stored_weights)()
    new = answers(model.sampler, to_sample, model.tokenizer, plan[done:], cfg, thinking)
    for number, rows in enumerate(new, done + 1):
        if primary:
            lease.check()
            text = jsonl(rows)
            with writing(file), file.open("a", encoding="utf-8") as out:
                out.write(text)
        hosts.note(f"batch {number} of {len(plan)}: {rows[0]['set']}")
        yield rows
        before(number - done)


def _whole_batches(file: Path, plan: Sequence[EvalBatch], k: int) -> tuple[int, str]:
    """Returns the number of whole batches at the beginning of a file of answers, and their text."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    at = done = 0
    for batch in plan:
        end = at + len(batch.examples) * k
        if len(lines) < end or not lines[end - 1].endswith(b"\n"):
            break
        wanted = [(batch.held_out.name, e.id) for e in batch.examples for _ in range(k)]
        for number, (line, answered) in enumerate(zip(lines[at:end], wanted, strict=True), at + 1):
            _check_line(file, number, line, answered)
        at, done = end, done + 1
    return done, b"".join(lines[:at]).decode()


def _check_line(file: Path, number: int, line: bytes, wanted: tuple[str, str]) -> None:
    """Raises UserError if a line does not answer the wanted example: its set and id."""
    remedy = "remove the file or choose another --out"
    try:
        row = json.loads(line)
        answered = (row["set"], row["id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}:{number}: not an answer; {remedy}") from None
    if answered != wanted:
        raise UserError(
            f"{file}:{number}: answers {answered[1]} of {answered[0]}, but {wanted[1]} of "
            f"{wanted[0]} comes here; {remedy}"
        )


def note_skipped(task: Task, listed: int = 10) -> None:
    """Prints remarks on the task's files, how many rows are not used, and the first `listed`."""
    skipped = note_remarks(task.skipped)
    if skipped:
        hosts.note(f"{task.name}: {len(skipped)} rows skipped")
    for row in skipped[:listed]:
        hosts.note(f"  {row.file}:{row.row}: {row.reason}")


def note_remarks(skipped: Sequence[Skipped]) -> list[Skipped]:
    """Prints each remark on a whole file once; returns the others, the rows left out."""
    for line in dict.fromkeys(f"{each.file}: {each.reason}" for each in skipped if not each.row):
        hosts.note(line)
    return [each for each in skipped if each.row]


def check_same_examples(name: str, examples: Sequence[Example]) -> None:
    """Raises UserError if processes have read different examples; compares about 1000 of them."""
    compared = [examples[i] for i in range(0, len(examples), max(len(examples) // 1000, 1))]
    texts = [to_json(asdict(example)) for example in compared]
    hosts.check_same(
        f"{name}: its examples", [len(examples), *texts], "give every host the same files"
    )
