"""Supervised finetuning: learned tokens of a conversation, the loss, and whole runs."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import learning
import marks
import numpy as np
import optax
import other_process
import pytest
import tiny
from flax import nnx
from runs import lines, timeless
from sums import SUMS

from sdjax import config
from sdjax.config.load import override
from sdjax.data import conversations
from sdjax.data.pipeline import Batches
from sdjax.jobs import export_job, sft_job
from sdjax.learner import adamw, state, supervised, update
from sdjax.learner.supervised import Conversation, SFTShape
from sdjax.models.files import weights
from sdjax.models.network.transformer import Transformer, head_weight, hidden_states, logits
from sdjax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Returns a model folder without weights."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(tiny.config("qwen3")))
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Returns a file of 40 conversations of different lengths."""
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{a} + {b}?"},
                {"role": "assistant", "content": "so " * (a % 3) + str(a + b)},
            ]
        }
        for a in range(8)
        for b in range(5)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def job(model: Path, source: Path, out: Path, **changes) -> config.SFT:
    """Returns a run of 6 updates of 8 conversations on a tiny model with random weights."""
    base = config.SFT(
        out=str(out),
        source=str(source),
        steps=6,
        batch=8,
        log_every=1,
        max_tokens=200,
        max_prompt_tokens=300,
        model=config.Model(path=str(model), init_seed=3, compute_dtype="float32", remat="none"),
        optim=config.Optim(lr=1e-2, warmup_steps=0, microbatch=2, row_tokens=128),
        checkpoint=config.Checkpoint(every=3),
        log=config.Log(progress=False),
    )
    return replace(base, **changes)


EVALUATED = {
    "task": SUMS,
    "out_of_domain": {"longer": replace(SUMS, options={**SUMS.options, "max_terms": 3})},
    "eval": config.Eval(every=3, k=2, examples=4, batch=4, max_completion_tokens=8),
}


@pytest.fixture(scope="module")
def finished(bare, sums, tmp_path_factory):
    """Returns the directory of a finished run that evaluates two tasks."""
    out = tmp_path_factory.mktemp("run") / "sft"
    sft_job.run(job(bare, sums, out, **EVALUATED))
    return out


def load(tmp_path, *rows, turns="last", on_bad_row="error"):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return conversations.load(str(file), turns=turns, on_bad_row=on_bad_row)


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>easy</think>2"},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Thanks."},
]


def test_only_the_assistants_turn_and_its_end_are_learned(bare, tmp_path):
    tokenizer = Tokenizer.load(bare)
    (one,), _ = load(tmp_path, {"messages": CHAT})
    (made,) = sft_job.encode([one], tokenizer, None)
    assert tokenizer.decode_raw(made.tokens[made.start :]) == "4<|im_end|>"
    assert tokenizer.decode_raw(made.tokens[: made.start]).endswith(
        "And 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_every_turn_is_learned_in_the_context_in_which_it_is_said(bare, tmp_path):
    tokenizer = Tokenizer.load(bare)
    found, _ = load(tmp_path, {"messages": CHAT}, turns="all")
    said = [tokenizer.decode_raw(m.tokens[m.start :]) for m in _encoded(found, tokenizer)]
    assert said == ["<think>easy</think>2<|im_end|>", "4<|im_end|>"]
    assert [len(d.messages) for d in found] == [2, 4]


def _encoded(found, tokenizer):
    return sft_job.encode(found, tokenizer, None)


def test_prompt_and_completion_are_a_conversation_of_two_turns(tmp_path):
    as_text = {"prompt": "1 + 1?", "completion": "2"}
    as_turns = {
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "completion": [{"role": "assistant", "content": "2"}],
    }
    (a, b), _ = load(tmp_path, as_text, as_turns)
    assert replace(b, row=1) == a
    assert a.messages == ({"role": "user", "content": "1 + 1?"},) and a.completion == "2"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"text": "hello"},
            "has none of messages, conversations, prompt with completion .the columns are text",
        ),
        ({"messages": "hello"}, "field 'messages' is str, not a list"),
        ({"messages": [{"role": "user"}]}, "message 1: 'content' is not a text"),
        ({"messages": CHAT[:2]}, "no turn of the assistant"),
        ({"messages": CHAT[4:5]}, "begins with the assistant"),
        ({"prompt": "1?", "completion": " "}, "field 'completion' is empty"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row, says, tmp_path):
    good = {"messages": CHAT}
    with pytest.raises(config.UserError, match=rf"rows.jsonl:2: .*{says}"):
        load(tmp_path, good, row)
    kept, skipped = load(tmp_path, good, row, on_bad_row="skip")
    assert len(kept) == 1 and [s.row for s in skipped] == [2]


def random_conversations(number=9):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 40, number)
    return [
        Conversation(tokens=rng.integers(3, 200, n).astype(np.int32), start=int(n) // 2)
        for n in lengths
    ]


@pytest.fixture(scope="module")
def reference(bare):
    """Returns params of a model, and loss and gradient on the conversations from whole logits."""
    cfg = weights.read_config(bare, compute_dtype="float32", remat="none")
    params = nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)))[1]
    made = random_conversations()
    width = max(len(c.tokens) for c in made)
    tokens = jnp.stack([jnp.pad(c.tokens, (0, width - len(c.tokens))) for c in made])
    places = jnp.arange(width - 1)
    learned = jnp.stack([(places >= c.start - 1) & (places < len(c.tokens) - 1) for c in made])

    def loss(params):
        model = nnx.merge(tiny.graph(cfg), params)
        positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
        scores = logits(hidden_states(model, tokens, positions, None), head_weight(model))
        each = optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], tokens[:, 1:])
        return jnp.mean(each, where=learned)

    return cfg, params, *jax.jit(jax.value_and_grad(loss))(params)


def updated(cfg, params, made, sizes=(1, 1, 1), *, remat="none", chunk_tokens=2048, **packing):
    """Returns the state after one update of a model on a mesh of these sizes, and its metrics."""
    job_cfg = config.SFT(
        out="unused",
        source="unused",
        batch=len(made),
        chunk_tokens=chunk_tokens,
        model=config.Model(compute_dtype="float32", remat=remat),
        optim=config.Optim(warmup_steps=0, clip_norm=1e9, **packing),
    )
    mesh = learning.make_mesh(*sizes)
    tx, teacher = adamw.make(job_cfg.optim), config.Teacher(kind="live")
    shardings = state.shardings(jax.eval_shape(lambda: params), tx, teacher, mesh)
    start = state.initialiser(tx, teacher, shardings)(jax.device_put(params, shardings.params))
    with jax.set_mesh(mesh):
        graph = tiny.graph(replace(cfg, remat=remat))
        train_step = supervised.make_train_step(graph, job_cfg, shardings)
        packed = supervised.pack(made, SFTShape.of(made, len(made), job_cfg.optim), 0)
        placed = jax.device_put(packed, update.batch_shardings(packed, mesh))
        return train_step(start, placed)[:2]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "how",
    [
        {"row_tokens": 0, "microbatch": 9},
        {"row_tokens": 64, "microbatch": 2, "chunk_tokens": 50},
        {"row_tokens": 100, "microbatch": 1, "remat": "full", "chunk_tokens": 64},
    ],
)
def test_neither_packing_nor_microbatches_nor_chunks_change_an_update(reference, how):
    cfg, params, want, grads = reference
    made = random_conversations()
    after, metrics = updated(cfg, jax.tree.map(jnp.copy, params), made, **how)
    np.testing.assert_allclose(metrics["sft/loss"], want, rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert metrics["sft/learned_tokens"] == sum(len(c.tokens) - c.start for c in made)
    # Compares moments, because Adam's first update is only the sign of the gradient.
    moments = jax.tree.leaves(after.opt_state[0].mu)
    for got, grad in zip(moments, jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(got, 0.1 * grad, rtol=2e-3, atol=1e-7)


@pytest.mark.slow
def test_devices_do_not_change_an_update():
    other_process.on_eight_devices("import test_sft; test_sft.compare_devices()")


def compare_devices():
    assert jax.device_count() == 8
    cfg = learning.CFG
    made = random_conversations()
    results = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        params = nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)))[1]
        packing = {"row_tokens": 64, "microbatch": 4}
        after, metrics = updated(cfg, params, made, sizes, remat="full", **packing)
        results.append(jax.device_get((after.opt_state[0].mu, metrics)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-7)


def test_any_batch_of_the_conversations_fits_the_shape():
    rng = np.random.default_rng(1)
    made = [
        Conversation(tokens=np.zeros(n, np.int32), start=1)
        for n in rng.choice([2, 30, 51, 64, 99, 128], 400)
    ]
    cfg = config.Optim(microbatch=4, row_tokens=128)
    shape = SFTShape.of(made, 40, cfg)
    for _ in range(50):
        chosen = [made[i] for i in rng.choice(400, 40, replace=False)]
        batch = supervised.pack(chosen, shape, 0)
        assert batch.rows.target.shape == (shape.microbatches, 4, 128)
        assert int((batch.rows.packed.segment_ids > 0).sum()) == sum(len(c.tokens) for c in chosen)
        assert int(batch.rows.learned.sum()) == batch.learned_tokens


def packed_in_turn(made, batch, cfg, seed, number):
    """Yields `number` batches in the order of a run, packed, each with its conversations."""
    shape, order = SFTShape.of(made, batch, cfg), Batches(made, batch, seed)
    for _ in range(number):
        chosen = next(order)
        yield chosen, supervised.pack(chosen, shape, 0)


def assert_whole(chosen, packed):
    """Asserts that every token of every conversation stands in the rows that run."""
    run = packed.rows.packed.tokens[: packed.microbatches]
    assert packed.microbatches <= len(packed.rows.target)
    inside = packed.rows.packed.segment_ids[: packed.microbatches] > 0
    wanted = np.sort(np.concatenate([c.tokens for c in chosen]))
    np.testing.assert_array_equal(np.sort(run[inside]), wanted)
    learned = packed.rows.learned[: packed.microbatches]
    assert learned.sum() == packed.learned_tokens == sum(len(c.tokens) - c.start for c in chosen)


def numbered(lengths):
    """Returns conversations of these lengths, each with tokens of its own."""
    return [
        Conversation(tokens=np.full(n, number + 1, np.int32), start=1)
        for number, n in enumerate(lengths)
    ]


def test_a_batch_over_the_end_of_an_epoch_holds_the_longest_conversations_twice():
    cfg = config.Optim(microbatch=1, row_tokens=100)
    made = numbered([51, 51, *[4] * 8])
    _, second = packed_in_turn(made, 8, cfg, 139, 2)
    chosen, packed = second
    assert sorted(len(c.tokens) for c in chosen)[-4:] == [51] * 4 and packed.microbatches == 4
    assert_whole(*second)


@pytest.mark.parametrize("seed", marks.heavy_but([1, 3, 5], range(12)))
def test_batches_in_turn_lose_and_repeat_nothing(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.choice([2, 3, 40, 51, 60, 99], rng.integers(1, 30))
    batch, microbatch = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    cfg = config.Optim(microbatch=microbatch, row_tokens=int(rng.integers(50, 200)))
    made, seen = numbered(lengths), []
    for chosen, packed in packed_in_turn(made, batch, cfg, seed, 12):
        assert_whole(chosen, packed)
        seen += chosen
    epochs, rest = divmod(len(seen), len(made))
    counts = np.bincount([c.tokens[0] for c in seen], minlength=len(made) + 1)[1:]
    assert set(counts) <= {epochs, epochs + 1} and np.count_nonzero(counts > epochs) == rest


def test_rows_without_a_place_are_an_error_and_not_left_out():
    made = numbered([60] * 4)
    shape = SFTShape(microbatches=1, rows=3, width=128, row_tokens=100)
    with pytest.raises(AssertionError):
        supervised.pack(made, shape, 0)


@pytest.mark.heavy
def test_a_run_from_random_weights_learns_and_is_evaluated_and_exported(finished):
    metrics = lines(finished / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4, 5, 6]
    # Random weights choose among 264 tokens; the learned tokens are a few digits.
    assert metrics[1]["sft/loss"] == pytest.approx(np.log(264), rel=0.05)
    assert metrics[6]["sft/loss"] < 0.8 * metrics[1]["sft/loss"]
    assert metrics[6]["sft/token_accuracy"] > 0.2
    assert all(m["sft/tokens_per_s"] > 0 and m["optim/skipped"] == 0 for m in metrics[1:])
    scored = [m["step"] for m in metrics if "eval/avg@2" in m and "ood/longer/avg@2" in m]
    assert scored == [0, 3, 6]
    history = json.loads((finished / "evaluations.json").read_text())
    assert [h["step"] for h in history] == [0, 3, 6] and "longer" in history[0]["out_of_domain"]
    assert len(lines(finished / "answers" / "000006.jsonl")) == 2 * 4 * 2
    assert Tokenizer.load(finished / "model").vocab_size == 259
    cfg = weights.read_config(finished / "model", compute_dtype="float32")
    assert all(
        np.all(np.isfinite(x)) for x in jax.tree.leaves(weights.load(finished / "model", cfg))
    )


@pytest.mark.heavy
def test_a_resumed_finetuning_equals_an_uninterrupted_one(finished, bare, sums, tmp_path):
    whole = job(bare, sums, tmp_path / "parts", **EVALUATED)
    sft_job.run(replace(whole, steps=3))
    sft_job.run(replace(whole, resume=True))
    for file in (finished / "model").iterdir():
        assert (tmp_path / "parts" / "model" / file.name).read_bytes() == file.read_bytes()
    assert timeless(finished) == timeless(tmp_path / "parts")


@pytest.mark.heavy
def test_a_skipped_update_of_a_finetuning_is_said_on_the_terminal(bare, sums, tmp_path, capsys):
    out = tmp_path / "out"
    far = config.Optim(lr=1e25, warmup_steps=0, microbatch=2, row_tokens=128)
    sft_job.run(job(bare, sums, out, steps=4, log_every=2, optim=far))
    warned = [line for line in capsys.readouterr().out.splitlines() if "skipped:" in line]
    # The first update blows the weights up, and the second one is skipped.
    assert warned == [
        "warning: step 2: 1 of 2 updates skipped: loss or gradient not finite (lower optim.lr, or "
        "look at the weights that the run started from)"
    ]
    assert [m["optim/skipped"] for m in lines(out / "metrics.jsonl")] == [0.5, 1.0, 1.0]


@pytest.mark.heavy
def test_a_checkpoint_of_a_finetuning_can_be_exported(finished, tmp_path):
    export_job.run(config.Export(run=str(finished), out=str(tmp_path / "model")))
    for file in (finished / "model").iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()


def test_a_conversation_over_the_limit_is_left_out_or_named(bare, sums, tmp_path):
    data = config.Data(on_overlong="error")
    with pytest.raises(config.UserError, match=r"sums.jsonl:1: \d+ tokens, over max_tokens \(9\)"):
        sft_job.run(job(bare, sums, tmp_path / "run", max_tokens=9, data=data))
    with pytest.raises(config.UserError, match="every one of the 40 conversations is longer"):
        sft_job.run(job(bare, sums, tmp_path / "run", max_tokens=9))
    assert not (tmp_path / "run").exists()


def test_a_section_that_may_be_none_is_changed_field_by_field(bare, sums, tmp_path):
    with_task = job(bare, sums, tmp_path, **EVALUATED)
    args = ["--task.held_out", "5", "--steps", "2"]
    assert override(with_task, args, prog="sdjax").task == replace(SUMS, held_out=5)
    assert override(job(bare, sums, tmp_path), ["--steps", "2"], prog="sdjax").task is None
