"""Finetunes a model on conversations: the loop, and what it reads."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from sdjax import config, tasks
from sdjax.analysis import epistemic
from sdjax.data import conversations
from sdjax.data.conversations import Demonstration
from sdjax.data.pipeline import Batches
from sdjax.errors import UserError
from sdjax.io import run_dir
from sdjax.io.storage import Folder
from sdjax.learner import adamw, state, supervised, update
from sdjax.learner.checkpoint import Checkpoints, abstract
from sdjax.learner.supervised import Conversation, SFTBatch, SFTShape
from sdjax.logs import profiler
from sdjax.logs.writers import Writer
from sdjax.parallel import hosts
from sdjax.tokenizer import Tokenizer
from sdjax.training import evaluation, loaded_model
from sdjax.training.evaluation import HeldOut

# The teacher of a train state that has none.
NO_TEACHER = config.Teacher(kind="live")
# Updates that are packed and on their way to the devices while one runs.
AHEAD = 2

T = TypeVar("T")


def run(cfg: config.SFT) -> None:
    """Trains, evaluates, checkpoints and exports as the config says."""
    epistemic.lexicon(cfg.lexicon)
    shop = loaded_model.workshop(cfg.model, cfg.mesh)
    loaded_model.check_shards("optim.microbatch", cfg.optim.microbatch, shop.mesh)
    loaded_model.check_shards("eval.slots", cfg.eval.slots, shop.mesh)
    config.require(
        cfg.max_tokens <= shop.cfg.max_positions,
        "max_tokens",
        cfg.max_tokens,
        f"exceeds the model's context of {shop.cfg.max_positions}; lower it",
    )
    sets = _held_out(cfg, shop)
    read, skipped = conversations.load(cfg.source, turns=cfg.turns, on_bad_row=cfg.data.on_bad_row)
    kept = _fitting(read, shop.tokenizer, cfg)
    overlong = len(read) - len(kept)
    kept = kept[: cfg.data.limit or None]
    hosts.note(
        f"{cfg.source}: {len(kept)} conversations, {sum(len(c.tokens) for c in kept)} tokens; "
        f"{overlong} over {cfg.max_tokens} tokens and {len(skipped)} wrong rows left out"
    )
    tokens = [c.tokens for c in kept]
    hosts.check_same(f"{cfg.source}: its conversations", tokens, "give every host the same file")
    shared = cfg.resume or cfg.checkpoint.every > 0
    folder = run_dir.claim_folder(cfg.out, cfg, resume=cfg.resume, shared=shared)
    with jax.set_mesh(shop.mesh), run_dir.pushed(folder):
        _train(cfg, shop, kept, sets, folder)


def _held_out(cfg: config.SFT, shop: loaded_model.LoadedModel) -> list[HeldOut]:
    if cfg.task is None:
        return []
    longest = cfg.eval.max_completion_tokens
    loaded_model.check_context(shop.cfg, "max_prompt_tokens", cfg.max_prompt_tokens, longest)
    sets = evaluation.held_out(
        tasks.load(cfg.task, cfg.data),
        {name: tasks.load(other, cfg.data) for name, other in cfg.out_of_domain.items()},
        cfg.eval,
        shop.tokenizer,
        cfg.max_prompt_tokens,
        cfg.enable_thinking,
    )
    evaluation.note_held_out(sets)
    return sets


def encode(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, enable_thinking: bool | None
) -> list[Conversation]:
    """Returns the tokens that the model would read and sample: prompts, and turns after them."""
    asked = [
        tokenizer.prompt_text(d.messages, enable_thinking=enable_thinking) for d in demonstrations
    ]
    prompts = tokenizer.encode_all(asked)
    completions = tokenizer.encode_completions([d.completion for d in demonstrations])
    return [
        Conversation(tokens=np.concatenate([prompt, completion]), start=len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _fitting(
    read: Sequence[Demonstration], tokenizer: Tokenizer, cfg: config.SFT
) -> list[Conversation]:
    """Returns the conversations of at most cfg.max_tokens tokens."""
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
    shop: loaded_model.LoadedModel,
    kept: Sequence[Conversation],
    sets: Sequence[HeldOut],
    folder: Folder,
) -> None:
    tx = adamw.make(cfg.optim)
    shardings = state.shardings(shop.abstract, tx, NO_TEACHER, shop.mesh)
    init = state.initialiser(tx, NO_TEACHER, shardings)
    train_step = supervised.make_train_step(shop.graphdef, cfg, shardings)
    after_step = update.make_after_step(NO_TEACHER, shardings)
    order = Batches(kept, cfg.batch, cfg.data.seed)
    out = folder.local
    checkpoints = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    steps = cfg.steps or math.ceil(cfg.epochs * len(kept) / cfg.batch)
    history: list[dict] = []
    done = checkpoints.begin(resume=cfg.resume) or 0
    if done:
        like = abstract(jax.eval_shape(init, shop.abstract), shardings)
        train_state, host = checkpoints.restore(done, like)
        order.set_state(host["data"])
        history = host["history"]
    else:
        train_state = init(shop.load())
    run_dir.rewrite_config(folder, cfg)
    course = evaluation.EvaluationHistory(
        shop=shop,
        sets=sets,
        cfg=cfg.eval,
        thinking=cfg.enable_thinking,
        out=out,
        history=history,
        lexicon=cfg.lexicon,
    )
    after = done if cfg.resume else None
    primary = jax.process_index() == 0
    writer = Writer(out, cfg.log, steps=steps, primary=primary, after=after)
    source = _updates(order, kept, shop, cfg)
    with writer, profiler.rounds(cfg.profile) as before, ThreadPoolExecutor(1) as background:
        if done == 0 and sets:
            writer.write(0, course.measure(0, shop.sampler.weights(train_state.params)))
        ahead = prefetched(lambda: next(source), background)
        interval = Interval()
        for number in range(done + 1, steps + 1):
            before(number - done - 1)
            batch, position = next(ahead)
            train_state, metrics, _ = train_step(train_state, batch)
            train_state = after_step(train_state)
            interval.add(metrics)
            last = number == steps
            evaluates = bool(sets) and (last or _is_due(number, cfg.eval.every))
            saves = cfg.checkpoint.every and (last or _is_due(number, cfg.checkpoint.every))
            # A resumed run begins an interval; so must the one that it goes on from.
            if last or evaluates or saves or _is_due(number, cfg.log_every):
                values = interval.take()
                if evaluates:
                    weights = shop.sampler.weights(train_state.params)
                    values |= course.measure(number, weights)
                    del weights
                writer.write(number, values)
                interval = Interval()
            if saves:
                host = {"data": position, "history": history}
                if primary:
                    folder.push()
                checkpoints.save(number, train_state, host)
    checkpoints.close()
    if cfg.checkpoint.export:
        loaded_model.export(shop, train_state.params, out)
    course.close()


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _updates(
    order: Batches[Conversation],
    kept: Sequence[Conversation],
    shop: loaded_model.LoadedModel,
    cfg: config.SFT,
) -> Iterator[tuple[SFTBatch, dict[str, Any]]]:
    """Yields updates on the devices, each with the position in the data after it."""
    shape = SFTShape.of(kept, cfg.batch, cfg.optim)
    for of_update in order:
        packed = supervised.pack(of_update, shape, shop.tokenizer.pad_id)
        yield hosts.place(packed, update.batch_shardings(packed, shop.mesh)), order.get_state()


def prefetched(
    make: Callable[[], T], background: ThreadPoolExecutor, ahead: int = AHEAD
) -> Iterator[T]:
    """Yields what `make` returns, without end; the next ones are made in the background."""
    futures = deque(background.submit(make) for _ in range(ahead))
    while True:
        futures.append(background.submit(make))
        yield futures.popleft().result()


class Interval:
    """The metrics of several updates, left on the devices until they are asked for."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._metrics: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes an update's metrics without waiting for them."""
        self._metrics.append(metrics)

    def take(self) -> dict[str, float]:
        """Returns the means over updates, and tokens a second; waits for the last update."""
        host = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._start
        means = {name: float(np.mean([m[name] for m in host])) for name in host[0]}
        each = seconds / len(host)
        return means | {"sft/tokens_per_s": means["sft/tokens"] / each, "time/update_s": each}
