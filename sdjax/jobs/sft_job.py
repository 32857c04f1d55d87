"""Finetunes a model on conversations."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from sdjax import config, tasks
from sdjax.analysis import epistemic
from sdjax.data import conversations
from sdjax.data.conversations import ConversationColumns, Demonstration
from sdjax.data.pipeline import Batches
from sdjax.errors import UserError
from sdjax.io import run_dir
from sdjax.io.storage import Folder
from sdjax.learner import adamw, state, supervised, update
from sdjax.learner.checkpoint import Checkpoints
from sdjax.learner.state import TrainState
from sdjax.learner.supervised import Conversation, SFTBatch, SFTShape
from sdjax.logs import profiler
from sdjax.logs.writers import Writer
from sdjax.parallel import hosts
from sdjax.tokenizer import Tokenizer
from sdjax.training import alerts, evaluation, fingerprint, loaded_model, resume
from sdjax.training.evaluation import EvaluationHistory, HeldOut
from sdjax.training.host_step import Skips
from sdjax.training.loaded_model import LoadedModel
from sdjax.training.loop import evaluates, is_due

# A train state without a teacher: a live teacher is the student itself.
NO_TEACHER = config.Teacher(kind="live")
# Updates that are packed and copied to the devices while another one runs.
AHEAD = 2
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
    model = loaded_model.open_model(cfg.model, cfg.mesh)
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
    named = ConversationColumns(messages=cfg.messages, prompt=cfg.prompt, completion=cfg.completion)
    read, skipped = conversations.load(
        cfg.source, turns=cfg.turns, on_bad_row=cfg.data.on_bad_row, named=named
    )
    left_out = evaluation.note_remarks(skipped)
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
    with jax.set_mesh(model.mesh), run_dir.pushed(folder):
        _train(cfg, model, kept, sets, folder, fingerprints)


def _held_out(cfg: config.SFT, model: LoadedModel) -> list[HeldOut]:
    """Returns the sets of the run's evaluations; none without a task."""
    if cfg.task is None:
        return []
    longest = cfg.eval.max_completion_tokens
    loaded_model.check_context(model.cfg, "max_prompt_tokens", cfg.max_prompt_tokens, longest)
    sets = evaluation.held_out(
        tasks.load(cfg.task, cfg.data),
        {name: tasks.load(other, cfg.data) for name, other in cfg.out_of_domain.items()},
        cfg.eval,
        model.tokenizer,
        cfg.max_prompt_tokens,
        cfg.enable_thinking,
    )
    evaluation.note_held_out(sets)
    return sets


def encode(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, enable_thinking: bool | None
) -> list[Conversation]:
    """Returns each conversation as the tokens that the model would read and then sample.

    What the chat template has begun, such as a thought, is not begun again by the completion.
    """
    prompts = tokenizer.encode_prompts(
        [d.messages for d in demonstrations], enable_thinking=enable_thinking
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
    completions = tokenizer.encode_completions(texts)
    return [
        Conversation(tokens=np.concatenate([prompt, completion]), start=len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _fitting(
    read: Sequence[Demonstration], tokenizer: Tokenizer, cfg: config.SFT
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


def _train(
    cfg: config.SFT,
    model: LoadedModel,
    kept: Sequence[Conversation],
    sets: Sequence[HeldOut],
    folder: Folder,
    fingerprints: Mapping[str, str],
) -> None:
    """Takes the updates that are left, and exports the model."""
    init, take_update, shardings = _functions(cfg, model)
    order = Batches(kept, cfg.batch, cfg.data.seed)
    saved = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    done, train_state, host = resume.restore(saved, model, init, shardings, resume=cfg.resume)
    if host is not None:
        order.set_state(host["data"])
    steps = cfg.steps or math.ceil(cfg.epochs * len(kept) / cfg.batch)
    if 0 < done < steps:
        run_dir.record(folder, cfg, done, fingerprints)
    history = [] if host is None else host["history"]
    skips = Skips() if host is None else Skips(**host.get("skips", {}))
    evaluations = _evaluations(cfg, model, sets, folder.local, history)
    primary, after = jax.process_index() == 0, done if cfg.resume else None
    writer = Writer(folder.local, cfg.log, steps=steps, primary=primary, after=after)
    updates = _updates(order, kept, model, cfg)
    with writer, profiler.rounds(cfg.profile) as begin_round, ThreadPoolExecutor(1) as background:
        if done == 0 and sets and evaluates(0, cfg.eval, last=False):
            writer.write(0, evaluations.measure(0, model.sampler.weights(train_state.params)))
        ahead = prefetched(lambda: next(updates), background)
        interval = Interval()
        for number in range(done + 1, steps + 1):
            begin_round(number - done - 1)
            batch, position = next(ahead)
            train_state, metrics = take_update(train_state, batch)
            interval.add(metrics)

            # Evaluate, log, checkpoint.
            last = number == steps
            measured = bool(sets) and evaluates(number, cfg.eval, last=last)
            saves = cfg.checkpoint.every > 0 and (last or is_due(number, cfg.checkpoint.every))
            # A checkpoint ends an interval, because a resumed run begins with a new one.
            if last or measured or saves or is_due(number, cfg.log_every):
                values, skipped = interval.take()
                skips, ended = _counted(skips, skipped, cfg.optim.most_skipped, steps, number)
                values["optim/skipped_total"] = float(skips.total)
                if measured and not ended:
                    weights = model.sampler.weights(train_state.params)
                    values |= evaluations.measure(number, weights)
                    del weights
                writer.write(number, values)
                writer.warn(number, alerts.skipped_updates(skipped, REMEDY) if any(skipped) else {})
                if ended:
                    raise UserError(
                        f"update {number}: loss or gradient not finite in {skips.in_row} updates "
                        f"in a row; optim.most_skipped is {cfg.optim.most_skipped}: {REMEDY}"
                    )
                interval = Interval()
            if saves:
                host = {"data": position, "history": history, "skips": asdict(skips)}
                resume.save(saved, folder, number, train_state, host)
    saved.close()
    if cfg.checkpoint.export:
        model.export(train_state.params, folder.local / "model", cfg.checkpoint.export_dtype)
    evaluations.close()


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


def _functions(
    cfg: config.SFT, model: LoadedModel
) -> tuple[
    Callable[[nnx.State], TrainState],
    Callable[[TrainState, SFTBatch], tuple[TrainState, dict[str, jax.Array]]],
    TrainState,
]:
    """Returns the jitted functions that make and update the state, and the state's shardings."""
    tx = adamw.make(cfg.optim)
    shardings = state.shardings(model.abstract, tx, NO_TEACHER, model.mesh)
    init = state.initialiser(tx, NO_TEACHER, shardings)
    train_step = supervised.make_train_step(model.graphdef, cfg, shardings)
    after_step = update.make_after_step(NO_TEACHER, shardings)

    def take_update(train_state: TrainState, batch: SFTBatch) -> tuple[TrainState, dict]:
        train_state, metrics, _ = train_step(train_state, batch)
        return after_step(train_state), metrics

    return init, take_update, shardings


def _evaluations(
    cfg: config.SFT, model: LoadedModel, sets: Sequence[HeldOut], out: Path, history: list[dict]
) -> EvaluationHistory:
    """Returns the evaluations of a run, which append to `history`."""
    return EvaluationHistory(
        model=model,
        sets=sets,
        cfg=cfg.eval,
        thinking=cfg.enable_thinking,
        out=out,
        history=history,
        lexicon=cfg.lexicon,
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
    """The metrics of consecutive updates; they stay on the devices until `take`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._metrics: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of an update without waiting for them."""
        self._metrics.append(metrics)

    def take(self) -> tuple[dict[str, float], list[bool]]:
        """Returns means over the updates with their speed, and which updates were skipped.

        Waits for the last update.
        """
        host = jax.device_get(self._metrics)
        seconds = (time.perf_counter() - self._start) / len(host)
        means = {name: float(np.mean([m[name] for m in host])) for name in host[0]}
        speed = {"sft/tokens_per_s": means["sft/tokens"] / seconds, "time/update_s": seconds}
        return means | speed, [bool(m["optim/skipped"]) for m in host]
