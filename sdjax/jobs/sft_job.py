"""Finetunes a model on conversations."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from sdjax import config, tasks
from sdjax.analysis import epistemic
from sdjax.data import conversations
from sdjax.data.conversations import AnsweredTurn, ConversationColumns
from sdjax.data.pipeline import Batches
from sdjax.errors import UserError
from sdjax.io import progress, run_dir
from sdjax.io.storage import Folder
from sdjax.learner import adamw, state, supervised, update
from sdjax.learner.checkpoint import Checkpoints
from sdjax.learner.state import TrainState
from sdjax.learner.supervised import Conversation, SFTBatch, SFTShape
from sdjax.logs import profiler, trackers
from sdjax.logs.writers import Writer
from sdjax.parallel import hosts
from sdjax.tokenizer import Tokenizer
from sdjax.training import alerts, evaluation, fingerprint, loaded_model, loop, publish, resume
from sdjax.training.callbacks import Callbacks
from sdjax.training.evaluation import EvaluationHistory, HeldOut
from sdjax.training.host_step import Skips
from sdjax.training.loaded_model import LoadedModel
from sdjax.training.loop import evaluates, is_due
from sdjax.training.resume import Progress
from sdjax.training.stopping import Stop

# A train state without a teacher: a live teacher is the student itself.
NO_TEACHER = config.Teacher(kind="live")
# Updates that are packed and copied to the devices while another one runs.
AHEAD = 2
# Texts that are tokenised at one time, on all cores.
PART = 1024
# Last tokens of a prompt in which a chat template may begin a thought.
OPENING = 64
# What to do about an update that is not finite.
REMEDY = "lower optim.lr, or look at the weights that the run started from"

T = TypeVar("T")


def run(cfg: config.SFT) -> None:
    """Trains, evaluates, checkpoints and exports as the config says."""
    after = resume.done(cfg.out) if cfg.resume else 0
    cfg = loaded_model.kept_date(cfg)
    run_dir.check_same(cfg, after)
    epistemic.lexicon(cfg.lexicon)
    if jax.process_index() == 0:
        trackers.check(cfg.log)
        publish.Destination.of(cfg.checkpoint).check()
    stop = Stop()
    named = ConversationColumns(messages=cfg.messages, prompt=cfg.prompt, completion=cfg.completion)
    read, skipped = conversations.load(
        cfg.source, turns=cfg.turns, on_bad_row=cfg.data.on_bad_row, named=named
    )
    left_out = evaluation.note_remarks(skipped)
    model = loaded_model.open_model(cfg.model, cfg.mesh, between=stop.check)
    cfg = model.dated(cfg)
    loaded_model.check_shards("optim.microbatch", cfg.optim.microbatch, model.mesh)
    loaded_model.check_shards("eval.slots", cfg.eval.slots, model.mesh)
    config.require(
        cfg.max_tokens <= model.cfg.max_positions,
        "max_tokens",
        cfg.max_tokens,
        f"exceeds the model's context of {model.cfg.max_positions}; lower it",
    )
    sets = _held_out(cfg, model)
    kept = _fitting(read, model.tokenizer, cfg)
    overlong = len(read) - len(kept)
    kept = kept[: cfg.data.limit or None]
    hosts.note(
        f"{cfg.source}: {len(kept)} conversations, {sum(len(c.tokens) for c in kept)} tokens; "
        f"{overlong} over {cfg.max_tokens} tokens and {len(left_out)} wrong rows left out"
    )
    tokens = [c.tokens for c in kept]
    hosts.check_same(f"{cfg.source}: its conversations", tokens, "give every host the same file")
    shared = cfg.resume or cfg.checkpoint.every > 0
    fingerprints = fingerprint.of_run(model, kept, sets)
    folder = run_dir.claim_folder(
        cfg.out,
        cfg,
        resume=cfg.resume,
        shared=shared,
        after=after,
        fingerprints=fingerprints,
    )
    setup = _Setup.of(cfg, model, kept, sets)
    listening = stop.listening(cfg.checkpoint.every > 0)
    with jax.set_mesh(model.mesh), listening, run_dir.pushed(folder):
        with _running(setup, folder, fingerprints) as (progress, out):
            _train(setup, progress, out, stop)
        adapters = model.cfg.lora is not None
        publish.publish_run(cfg.checkpoint, folder, progress.step, adapters=adapters)


def _held_out(cfg: config.SFT, model: LoadedModel) -> list[HeldOut]:
    """Returns the sets of the run's evaluations; none without a task."""
    if cfg.task is None:
        return []
    longest = cfg.eval.max_completion_tokens
    loaded_model.check_context(model.cfg, "max_prompt_tokens", cfg.max_prompt_tokens, longest)
    sets = evaluation.held_out(
        tasks.load(cfg.task, cfg.data),
        tasks.load_others(cfg.out_of_domain, cfg.data),
        cfg.eval,
        model.tokenizer,
        cfg.max_prompt_tokens,
        cfg.enable_thinking,
    )
    evaluation.note_held_out(sets)
    return sets


def encode(
    demonstrations: Sequence[AnsweredTurn], tokenizer: Tokenizer, enable_thinking: bool | None
) -> list[Conversation]:
    """Returns each conversation as the tokens that the model would read and then sample.

    What the chat template has begun, such as a thought, is not begun again by the completion.
    """
    prompts = _by_parts(
        [d.messages for d in demonstrations],
        lambda part: tokenizer.encode_prompts(part, enable_thinking=enable_thinking),
        "prompts",
    )
    texts = [
        conversations.without_opening(tokenizer.decode_raw(prompt[-OPENING:]), d.completion)
        for prompt, d in zip(prompts, demonstrations, strict=True)
    ]
    again = sum(text != d.completion for text, d in zip(texts, demonstrations, strict=True))
    if again:
        hosts.note(
            f"{again} completions begin with what the chat template's prompt ends with (a thought "
            "that is opened); it counts once"
        )
    completions = _by_parts(texts, tokenizer.encode_completions, "completions")
    return [
        Conversation(tokens=np.concatenate([prompt, completion]), start=len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _by_parts(
    items: Sequence[T], encode_all: Callable[[Sequence[T]], list[np.ndarray]], units: str
) -> list[np.ndarray]:
    """Returns the tokens of all items; PART of them at a time, so that a line can say how far."""
    parts = (encode_all(items[start : start + PART]) for start in range(0, len(items), PART))
    flat = (tokens for part in parts for tokens in part)
    return list(progress.told(flat, "tokenising", units, len(items)))


def _fitting(
    read: Sequence[AnsweredTurn], tokenizer: Tokenizer, cfg: config.SFT
) -> list[Conversation]:
    """Returns the conversations of at most cfg.max_tokens tokens; raises UserError without any."""
    kept = []
    encoded = encode(read, tokenizer, cfg.enable_thinking)
    for demonstration, conversation in zip(read, encoded, strict=True):
        length = len(conversation.tokens)
        if length <= cfg.max_tokens:
            kept.append(conversation)
        elif cfg.data.on_overlong == "error":
            raise UserError(
                f"{cfg.source}:{demonstration.row}: {length} tokens, over max_tokens "
                f"({cfg.max_tokens}); raise it or set data.on_overlong to 'skip'"
            )
    if not kept:
        raise UserError(
            f"max_tokens is {cfg.max_tokens}: every one of the {len(read)} conversations is longer"
        )
    return kept


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What every update of a finetuning reads."""

    cfg: config.SFT
    model: LoadedModel
    kept: Sequence[Conversation]
    sets: Sequence[HeldOut]
    steps: int
    functions: _Functions
    order: Batches[Conversation]

    @classmethod
    def of(
        cls,
        cfg: config.SFT,
        model: LoadedModel,
        kept: Sequence[Conversation],
        sets: Sequence[HeldOut],
    ) -> _Setup:
        """Returns the setup of a finetuning on these conversations."""
        return cls(
            cfg=cfg,
            model=model,
            kept=kept,
            sets=sets,
            steps=cfg.steps or math.ceil(cfg.epochs * len(kept) / cfg.batch),
            functions=_functions(cfg, model),
            order=Batches(kept, cfg.batch, cfg.data.seed),
        )


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """The places that a finetuning writes to, and the metrics that are not written yet."""

    folder: Folder
    saved: Checkpoints
    writer: Writer
    evaluations: EvaluationHistory
    callbacks: Callbacks
    interval: Interval


@contextmanager
def _running(
    setup: _Setup, folder: Folder, fingerprints: Mapping[str, str]
) -> Iterator[tuple[Progress, _Outputs]]:
    """Yields a run's progress and its outputs; exports the model at the end of the block.

    See loop.saving for the end of a block that fails.
    """
    cfg, model, functions = setup.cfg, setup.model, setup.functions
    saved = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    done, train_state, host = resume.restore(
        saved, model, functions.init, functions.shardings, resume=cfg.resume
    )
    if host is None:
        host = {"unscored": {}}
    else:
        setup.order.set_state(host["data"])
    progress = Progress(
        state=train_state,
        step=done,
        data=host.get("data") or setup.order.get_state(),
        history=host.get("history", []),
        unscored=host.get("unscored"),
        skips=Skips(**host.get("skips", {})),
    )
    if done and progress.logged < setup.steps:
        run_dir.record(folder, cfg, done, fingerprints)
    primary, logged = jax.process_index() == 0, progress.logged if cfg.resume else None
    writer = Writer(
        folder.local, cfg.log, steps=setup.steps, primary=primary, after=logged, job=cfg
    )
    out = _Outputs(
        folder=folder,
        saved=saved,
        writer=writer,
        evaluations=_evaluations(setup, folder.local, progress.history, writer),
        callbacks=Callbacks(cfg=cfg),
        interval=Interval(host.get("interval", ())),
    )
    with loop.saving(progress, cfg, saved, lambda: _checkpoint(progress, out, passing=True)):
        with out.writer:
            yield progress, out
        saved.close()
        if cfg.checkpoint.export:
            params, dtype = progress.state.params, cfg.checkpoint.export_dtype
            model.export(params, folder.local / "model", dtype)
        out.evaluations.close()


def _train(setup: _Setup, progress: Progress, out: _Outputs, stop: Stop) -> None:
    """Takes the updates that are left; raises Stopped after a signal."""
    cfg, last = setup.cfg, False
    if progress.unscored is not None:
        last = _end_step(setup, progress, out)
    updates = _updates(setup.order, setup.kept, setup.model, cfg)
    with profiler.rounds(cfg.profile) as begin_round, ThreadPoolExecutor(1) as background:
        ahead = prefetched(lambda: next(updates), background)
        first = progress.step
        out.interval.restart()
        while progress.step < setup.steps and not last:
            stop.check()
            begin_round(progress.step - first)
            batch, position = next(ahead)
            progress.state, metrics = setup.functions.take_update(progress.state, batch)
            out.interval.add(metrics)
            progress.data, progress.step = position, progress.step + 1
            if _is_logged(setup, progress.step):
                progress.unscored = _interval_metrics(setup, progress, out)
                last = _end_step(setup, progress, out)
                out.interval.restart()
        if progress.step < setup.steps:
            by = out.callbacks.ended_by
            out.writer.say(f"stopped by {by} after step {progress.step} of {setup.steps}")
        stop.check()


def _is_logged(setup: _Setup, step: int) -> bool:
    """Returns whether the metrics since the last line are written after a step."""
    cfg, last = setup.cfg, step == setup.steps
    measured = bool(setup.sets) and evaluates(step, cfg.eval, last=last)
    # A checkpoint ends an interval too.
    return last or measured or any(is_due(step, n) for n in (cfg.checkpoint.every, cfg.log_every))


def _interval_metrics(setup: _Setup, progress: Progress, out: _Outputs) -> dict[str, float]:
    """Returns the metrics since the last line, and counts the updates that were skipped.

    Raises UserError, after it has written the metrics, if too many in a row were skipped.
    """
    most, step = setup.cfg.optim.most_skipped, progress.step
    values, skipped = out.interval.take()
    progress.skips, ended = _counted(progress.skips, skipped, most, setup.steps, step)
    values["optim/skipped_total"] = float(progress.skips.total)
    out.writer.warn(step, alerts.skipped_updates(skipped, REMEDY) if any(skipped) else {})
    if ended:
        out.writer.write(step, values)
        raise UserError(
            f"update {step}: loss or gradient not finite in {progress.skips.in_row} updates in a "
            f"row; optim.most_skipped is {most}: {REMEDY}"
        )
    return values


def _end_step(setup: _Setup, progress: Progress, out: _Outputs) -> bool:
    """Evaluates, logs and checkpoints the step that is done, where these are due.

    Returns whether it is the last of the run.
    """
    cfg, step, values = setup.cfg, progress.step, dict(progress.unscored or {})
    last = step == setup.steps
    if step:
        last = out.callbacks.end_run("on_step", step, values) or last
    if setup.sets and evaluates(step, cfg.eval, last=last):
        weights = setup.model.sampler.weights(progress.state.params)
        scored = out.evaluations.measure(step, weights)
        last = out.callbacks.end_run("on_evaluation", step, scored) or last
        values |= scored
    if values:  # Without an evaluation, step 0 has none.
        out.writer.write(step, values)
    progress.unscored = None
    if step and cfg.checkpoint.every and (last or is_due(step, cfg.checkpoint.every)):
        _checkpoint(progress, out)
    return last


def _checkpoint(progress: Progress, out: _Outputs, *, passing: bool = False) -> None:
    """Starts to save a checkpoint."""
    host = {
        "data": progress.data,
        "history": progress.history,
        "unscored": progress.unscored,
        "skips": asdict(progress.skips),
        "interval": out.interval.fetch(),
    }
    step, state = progress.step, progress.state
    resume.save(out.saved, out.folder, step, state, host, passing=passing)


def _counted(
    skips: Skips, skipped: Sequence[bool], most: int, steps: int, number: int
) -> tuple[Skips, bool]:
    """Returns the counts after updates whose last is `number` of `steps`, and if they end the run.

    The counts are then those after the update that ends it.
    """
    for update_number, is_skipped in enumerate(skipped, number - len(skipped) + 1):
        skips = skips.after([is_skipped])
        if skips.end_run(most, steps, steps - update_number):
            return skips, True
    return skips, False


@dataclass(frozen=True, kw_only=True)
class _Functions:
    """The jitted functions that make and update the state, and the state's shardings."""

    init: Callable[[nnx.State], TrainState]
    take_update: Callable[[TrainState, SFTBatch], tuple[TrainState, dict[str, jax.Array]]]
    shardings: TrainState


def _functions(cfg: config.SFT, model: LoadedModel) -> _Functions:
    """Returns the functions of a finetuning."""
    tx = adamw.make(cfg.optim)
    shardings = state.shardings(model.abstract, tx, NO_TEACHER, model.mesh)
    init = state.initialiser(tx, NO_TEACHER, shardings)
    train_step = supervised.make_train_step(model.graphdef, cfg, shardings)
    after_step = update.make_after_step(NO_TEACHER, shardings)

    def take_update(train_state: TrainState, batch: SFTBatch) -> tuple[TrainState, dict]:
        with progress.waiting("update"):  # Only the first one takes long, because it compiles.
            train_state, metrics, _ = train_step(train_state, batch)
        return after_step(train_state), metrics

    return _Functions(init=init, take_update=take_update, shardings=shardings)


def _evaluations(
    setup: _Setup, out: Path, history: list[dict], writer: Writer
) -> EvaluationHistory:
    """Returns the evaluations of a run, which append to `history`; `writer` gets their answers."""
    cfg = setup.cfg
    return EvaluationHistory(
        model=setup.model,
        sets=setup.sets,
        cfg=cfg.eval,
        thinking=cfg.enable_thinking,
        out=out,
        history=history,
        lexicon=cfg.lexicon,
        show=writer.samples,
    )


def _updates(
    order: Batches[Conversation],
    kept: Sequence[Conversation],
    model: LoadedModel,
    cfg: config.SFT,
) -> Iterator[tuple[SFTBatch, dict[str, Any]]]:
    """Yields the batches of updates on the devices, each with the position in the data after it."""
    shape = SFTShape.of(kept, cfg.batch, cfg.optim)
    for conversations_of_update in order:
        packed = supervised.pack(conversations_of_update, shape, model.tokenizer.pad_id)
        yield hosts.place(packed, update.batch_shardings(packed, model.mesh)), order.get_state()


def prefetched(
    make: Callable[[], T], background: ThreadPoolExecutor, ahead: int = AHEAD
) -> Iterator[T]:
    """Yields the results of `make` without end, and makes the next `ahead` in the background."""
    futures = deque(background.submit(make) for _ in range(ahead))
    while True:
        futures.append(background.submit(make))
        yield futures.popleft().result()


class Interval:
    """The metrics of consecutive updates since a line was written."""

    def __init__(self, before: Sequence[dict[str, float]] = ()) -> None:
        """`before` are those of the updates before a signal."""
        self._before = list(before)
        self._metrics: list[dict[str, jax.Array]] = []  # on the devices
        self.restart()

    def restart(self) -> None:
        """Counts the time from now."""
        self._start = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of an update; waits for an update before it.

        Otherwise a signal might have to wait for as many updates as an interval has.
        """
        self._metrics.append(metrics)
        if len(self._metrics) > AHEAD:
            jax.block_until_ready(self._metrics[-1 - AHEAD])

    def fetch(self) -> list[dict[str, float]]:
        """Returns the metrics of each update; waits for the last one."""
        new = jax.device_get(self._metrics)
        return self._before + [{name: float(x) for name, x in each.items()} for each in new]

    def take(self) -> tuple[dict[str, float], list[bool]]:
        """Returns means over the updates with their speed, and which updates were skipped.

        Waits for the last update. The next interval has none of them.
        """
        rows = self.fetch()
        seconds = (time.perf_counter() - self._start) / len(self._metrics)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        speed = {"sft/tokens_per_s": means["sft/tokens"] / seconds, "time/update_s": seconds}
        self._before, self._metrics = [], []
        return means | speed, [bool(row["optim/skipped"]) for row in rows]
