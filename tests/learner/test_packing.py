"""Completions that share a row: nothing is lost, nothing changes but the padding."""

import sys
from dataclasses import replace

import jax
import learning
import numpy as np
import other_process
import pytest
from learning import PLAIN

from sdjax import config
from sdjax.learner.batch import assign

METHODS = {
    "sdpo": {"loss": {"token_weights": "position"}},
    "grpo": {"loss": {"distillation": 0.0}},
    "blend": {"loss": {"distillation": 0.4, "token_weights": "epistemic"}},
    # Narrow enough that some sequence ratios are clipped.
    "gspo": {
        "loss": {"distillation": 0.0},
        "policy": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    },
}
ROW_TOKENS = 160
"""Two or three of the random completions and their reprompts."""


def drifted(batch, scored):
    """Returns the batch with old log-probabilities that differ from `scored` by token."""
    drawn = np.random.default_rng(3).normal(0.02, 0.2, (len(batch.samples.length), 64))
    old = scored + drawn[batch.rows.sample, batch.rows.index].astype(np.float32)
    return replace(batch, rows=replace(batch.rows, old_logprobs=old))


def updated(method, aggregation, row_tokens, mesh=(1, 1, 1)):
    """Returns metrics, -1000 times the gradient, and [student, teacher] logprobs of its tokens."""
    sections = METHODS[method]
    # Packed rows also come in smaller microbatches.
    microbatch = 4 if row_tokens and mesh == (1, 1, 1) else 8
    cfg = learning.train_config(
        optim=PLAIN | {"row_tokens": row_tokens, "minibatches": 2, "microbatch": microbatch},
        loss=sections["loss"] | {"aggregation": aggregation},
        policy=sections.get("policy", {}),
        teacher={"dtype": "float32"},
    )
    learner = learning.Learner(cfg, learning.make_mesh(*mesh))
    before, batch = learner.params(), learning.pack(cfg)
    scored = batch.rows.sampler_logprobs
    if cfg.loss.distillation < 1:  # ratios are clipped, but not all of them
        with jax.set_mesh(learner.mesh):
            scored = jax.device_get(learner.score(learner.state.params, batch))
    batch = drifted(batch, scored)
    metrics = learner.update(batch)
    logprobs = [
        np.concatenate([x for x in learning.by_completion(batch, values) if x is not None])
        for values in (learner.record.student_logprob, learner.record.teacher_logprob)
        if values is not None
    ]
    return metrics, jax.tree.map(lambda a, b: a - b, learner.params(), before), logprobs


def assert_same(packed, alone):
    assert packed[0]["update/padding"] < alone[0]["update/padding"]
    for name in alone[0].keys() - {"update/padding"}:
        # Absolute part: sums of float32 terms near 1 that cancel.
        np.testing.assert_allclose(
            packed[0][name], alone[0][name], rtol=1e-5, atol=1e-7, err_msg=name
        )
    for a, b in zip(jax.tree.leaves(packed[1]), jax.tree.leaves(alone[1]), strict=True):
        # Absolute part: float32 rounding of a change 1000 times the gradient, beside values near 1.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6 * np.abs(b).max())
    for a, b in zip(packed[2], alone[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


CASES = [("sdpo", "sequence")]
HEAVY = [("gspo", "sequence"), ("blend", "constant")]
# The mesh's test compares blend and gspo by token.
MORE = [("grpo", "token"), ("blend", "sequence"), ("blend", "token")]


@pytest.mark.parametrize(
    ("method", "aggregation"),
    [
        *CASES,
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in HEAVY),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_an_update_of_packed_rows_in_any_microbatches_is_that_of_rows_of_one(method, aggregation):
    alone, packed = (updated(method, aggregation, n) for n in (0, ROW_TOKENS))
    assert alone[0]["optim/grad_norm"] > 1e-4
    if method in ("grpo", "gspo"):
        assert 0.1 < alone[0]["policy/clipped"] < 0.9
    assert_same(packed, alone)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "meshes",
    [
        {"blend": [(2, 2, 2)], "gspo": [(8, 1, 1)]},
        pytest.param({"blend": [(8, 1, 1)], "gspo": [(2, 2, 2)]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_packed_rows_on_a_mesh_give_the_update_of_rows_of_one_on_one_device(meshes):
    other_process.on_eight_devices(
        f"import test_packing; test_packing.compare_with_one_device({meshes})"
    )


def compare_with_one_device(meshes):
    """Runs in the subprocess."""
    assert jax.device_count() == 8
    for method, shapes in meshes.items():
        alone = updated(method, "token", 0)
        for mesh in shapes:
            print(method, mesh, file=sys.stderr)  # shown where they differ
            assert_same(updated(method, "token", ROW_TOKENS, mesh), alone)


@pytest.mark.parametrize("seed", range(20))
def test_every_token_of_every_learned_completion_stands_in_one_place_in_both_rows(seed):
    rng = np.random.default_rng(seed)
    row_tokens, microbatch = int(rng.integers(1, 400)), int(rng.integers(1, 6))
    groups = learning.groups(seed, prompts=int(rng.integers(2, 12)), size=int(rng.integers(1, 6)))
    reprompts = learning.reprompts(groups, seed)
    cfg = learning.train_config(
        optim={"row_tokens": row_tokens, "microbatch": microbatch},
        loss={"distillation": float(rng.choice([0.5, 1.0]))},
    )
    batch = learning.pack(cfg, groups, reprompts)
    rows, completions = batch.rows, [c for g in groups for c in g.completions]
    real = rows.sample >= 0
    found = sorted(zip(rows.sample[real], rows.index[real], strict=True))
    learned = np.flatnonzero(batch.samples.learned)
    assert found == [(i, t) for i in learned for t in range(len(completions[i].tokens))]
    assert not real[batch.microbatches :].any() and rows.token.shape[1] == microbatch

    flat = rows.sample[real], rows.index[real]
    logprobs = [completions[i].logprobs[t] for i, t in zip(*flat, strict=True)]
    np.testing.assert_array_equal(rows.sampler_logprobs[real], logprobs)
    prompts = [g.prompt for g in groups for _ in g.completions]
    taught = [r.tokens for of_group in reprompts for r in of_group]
    contexts = [
        (rows.student, prompts),
        (rows.contexts["solution"], taught),
    ]
    longest = 0
    for of, context in contexts:
        assert_whole(of, rows, [(context[i], completions[i].tokens, i) for i in learned])
        longest = max(longest, *(len(context[i]) + len(completions[i].tokens) for i in learned))
    used = [np.count_nonzero(x.packed.segment_ids, axis=-1).max() for x, _ in contexts]
    assert max(used) <= max(row_tokens, longest)


def assert_whole(of, rows, wanted):
    """Asserts that a context's rows hold each (context, completion, number), and no more."""
    packed = of.packed
    of_row = [x.reshape(-1, x.shape[-1]) for x in (packed.tokens, packed.segment_ids)]
    tokens, segments = of_row
    positions = packed.positions.reshape(tokens.shape)
    sample, predicted = (x.reshape(len(tokens), -1) for x in (rows.sample, of.index))
    for context, completion, number in wanted:
        (row,) = set(np.nonzero(sample == number)[0])
        at = predicted[row][sample[row] == number]
        (segment,) = set(segments[row, at])
        assert segment > 0
        inside = segments[row] == segment
        np.testing.assert_array_equal(tokens[row, inside], np.concatenate([context, completion]))
        np.testing.assert_array_equal(positions[row, inside], np.arange(inside.sum()))
        np.testing.assert_array_equal(positions[row, at], len(context) - 1 + np.arange(len(at)))
        np.testing.assert_array_equal(tokens[row, at + 1], completion)
    assert np.count_nonzero(segments) == sum(len(p) + len(t) for p, t, _ in wanted)


def test_values_by_completion_are_those_of_its_tokens_in_order():
    batch = learning.pack(learning.train_config(optim={"row_tokens": ROW_TOKENS}))
    assert np.any(batch.rows.student.packed.segment_ids > 1)
    values = (1000 * batch.rows.sample + batch.rows.index).astype(np.float32)
    out = learning.by_completion(batch, values)
    assert [x is not None for x in out] == batch.samples.learned.tolist()
    for i, (found, length) in enumerate(zip(out, batch.samples.length, strict=True)):
        if found is not None:
            np.testing.assert_array_equal(found, 1000 * i + np.arange(length))


def test_rows_of_one_carry_no_segments():
    batch = learning.pack(learning.train_config())
    assert (
        batch.rows.student.packed.segment_ids is None
        and batch.rows.contexts["solution"].packed.segment_ids is None
    )


@pytest.mark.parametrize(("row_tokens", "most"), [(512, 0.5), (4096, 0.25)])
def test_packing_halves_the_rows_of_ragged_completions_and_wastes_little(row_tokens, most):
    rng = np.random.default_rng(0)
    for _ in range(5):
        alone = np.clip(50 * np.exp(rng.standard_normal(256)), 1, 450).astype(np.int64)
        student = alone + rng.integers(5, 15, 256)
        sizes = np.stack([alone, student, student + rng.integers(20, 45, 256)], axis=1)
        rows = assign(sizes, row_tokens=row_tokens, multiple=8)
        assert sorted(i for row in rows for i in row) == list(range(256))
        longest = np.array([sizes[row].sum(axis=0) for row in rows]).max(axis=0)
        assert longest.max() <= row_tokens and len(rows) <= 128
        computed = -(-len(rows) // 8) * 8 * longest
        assert np.all(1 - sizes.sum(axis=0) / computed < most)
        assert 1 - sizes[:, 2].sum() / computed[2] < 0.1


def test_a_completion_over_the_limit_raises_it_for_all_rows():
    sizes = np.array([[300], [100], [100], [100], [90]])
    rows = assign(sizes, row_tokens=100, multiple=1)
    assert [sum(sizes[i, 0] for i in row) for row in rows] == [300, 200, 190]


def test_a_microbatch_is_filled_with_shorter_rows_where_there_is_room():
    rows = assign(np.full((8, 1), 10), row_tokens=80, multiple=4)
    assert [len(row) for row in rows] == [2, 2, 2, 2]


@pytest.mark.heavy
def test_ragged_packed_updates_compile_once_per_shape_bucket():
    cfg = learning.train_config(optim={"row_tokens": ROW_TOKENS})
    learner = learning.Learner(cfg, learning.make_mesh())
    shapes = set()
    for seed in range(8):
        batch = learning.pack(cfg, learning.groups(seed=seed))
        shapes.add(tuple(x.shape for x in jax.tree.leaves(batch)))
        learner.update(batch)
    assert learner.step._cache_size() == len(shapes) <= 4


def test_only_rows_of_one_must_fill_their_microbatches():
    packed = config.Optim(microbatch=3, row_tokens=64)
    packed.check_update(16)
    with pytest.raises(config.UserError, match=r"optim\.microbatch is 3: must divide the 16"):
        replace(packed, row_tokens=0).check_update(16)
    with pytest.raises(config.UserError, match=r"optim\.row_tokens is -1"):
        config.Optim(row_tokens=-1)
