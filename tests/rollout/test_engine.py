"""The engine: the plain loop's tokens, in fewer steps; slots, refill, and a cache that fits."""

import itertools
import sys
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import learning
import marks
import numpy as np
import other_process
import pytest
from flax import nnx

from sdjax import config
from sdjax.bench import engine_speed, plain_sampler
from sdjax.models.network.transformer import Transformer, hidden_states, logits
from sdjax.parallel import rules
from sdjax.records import Example, Grade
from sdjax.rollout.collect import collect
from sdjax.rollout.engine import generation, sampler
from sdjax.rollout.engine.generation import Schedule
from sdjax.rollout.engine.slots import settings
from sdjax.rollout.interface import SamplingRequest

STOPS = (1, 2)
PROMPTS = [np.arange(3, 3 + n, dtype=np.int32) for n in (6, 3, 17, 40, 9, 1)]
# Every 4 steps the host looks; small caches and few slots are worth a resize.
SCHEDULE = Schedule(steps=4, prefill_tokens=128, least_capacity=32, least_slots=1, worth=1)
HOT = config.Sampling(temperature=1.0, max_completion_tokens=24)


def lognormal_limits(count: int, longest: int) -> np.ndarray:
    """Returns int32[count] lengths of a long tail: their median is an eighth of the longest."""
    drawn = np.random.default_rng(0).lognormal(np.log(longest / 8), 1.0, count)
    return np.clip(drawn, 1, longest).astype(np.int32)


def asked(prompts=PROMPTS, group_size=4, sampling=HOT, limits=None):
    return SamplingRequest(
        prompts=prompts,
        group_size=group_size,
        sampling=sampling,
        key=jax.random.key(0),
        limits=limits,
    )


class Setting:
    """A tiny model's sampler on a mesh, and the plain loop beside it."""

    def __init__(self, mesh=(1, 1, 1), cfg=learning.CFG, stop_ids=STOPS):
        self.cfg, self.mesh, self.stop_ids = cfg, learning.make_mesh(*mesh), stop_ids
        model = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
        self.graphdef, abstract = nnx.split(model)
        self.params = jax.device_put(
            learning.random_params(abstract), rules.param_shardings(abstract, self.mesh)
        )
        self.sampler = sampler.make(
            self.graphdef, cfg, self.mesh, stop_ids=stop_ids, pad_id=0, schedule=SCHEDULE
        )
        self.generate = plain_sampler.make(cfg, stop_ids=stop_ids, pad_id=0)
        with jax.set_mesh(self.mesh):
            self.weights = self.sampler.weights(self.params)

    def run(self, prompts=PROMPTS, group_size=4, sampling=HOT, limits=None, made=None):
        """Returns the run and what it yielded, in order of its end."""
        request = asked(prompts, group_size, sampling, limits)
        with jax.set_mesh(self.mesh):
            run = (made or self.sampler).stream(self.weights, request)
            return run, list(run)

    def engine(self, *args, **kwargs):
        """Returns the completions in order."""
        _, ended = self.run(*args, **kwargs)
        assert sorted(i for i, _ in ended) == list(range(len(ended)))
        return [sampled for _, sampled in sorted(ended, key=lambda item: item[0])]

    def plain(self, prompts=PROMPTS, group_size=4, sampling=HOT, limits=None):
        """Returns the plain loop's (tokens, logprobs) in order."""
        rows = np.zeros((len(prompts), 64), np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            row[: len(prompt)] = prompt
        if limits is None:
            limits = np.full(len(prompts) * group_size, sampling.max_completion_tokens, np.int32)
        with jax.set_mesh(self.mesh):
            tokens, logprobs, count = self.generate(
                self.weights,
                plain_sampler.PromptRows(
                    tokens=rows, length=np.array([len(p) for p in prompts], np.int32), limit=limits
                ),
                jax.random.key(0),
                settings(sampling),
                group_size=group_size,
                capacity=256,
            )
        drawn = zip(np.asarray(tokens), np.asarray(logprobs), np.asarray(count), strict=True)
        return [(t[:n], lp[:n]) for t, lp, n in drawn]


@pytest.fixture(scope="module")
def setting():
    return Setting()


@pytest.fixture(scope="module")
def unending():
    """A model without stop tokens: lengths are the limits."""
    return Setting(stop_ids=())


def assert_same(engine, by_plain):
    for sampled, (tokens, logprobs) in zip(engine, by_plain, strict=True):
        np.testing.assert_array_equal(sampled.tokens, tokens)
        np.testing.assert_allclose(sampled.logprobs, logprobs, atol=1e-5)
        assert sampled.finish == ("stop" if tokens[-1] in STOPS else "length")


def recorded(made):
    """Returns the sampler and a list to which it adds (slots, capacity) of each decode call."""
    shapes = []

    def decode(weights, slots, *args, **static):
        keys = slots.cache.keys[0]  # [slots, KV heads, capacity, head_dim] on a CPU
        shapes.append((keys.shape[0], keys.shape[2]))
        return made.programs.decode(weights, slots, *args, **static)

    return replace(made, programs=replace(made.programs, decode=decode)), shapes


@pytest.mark.parametrize(
    ("slots", "temperature"),
    marks.heavy_but([(40, 0.0)], itertools.product([1, 5, 24, 40], [0.0, 1.0])),
)
def test_tokens_are_those_of_the_plain_loop(setting, slots, temperature):
    sampling = replace(HOT, temperature=temperature)
    engine = setting.engine(sampling=replace(sampling, slots=slots))
    assert_same(engine, setting.plain(sampling=sampling))
    assert len({sampled.finish for sampled in engine}) == 2 or temperature == 0


@pytest.mark.heavy
def test_nothing_goes_between_host_and_device_unasked(setting):
    with jax.set_mesh(setting.mesh):
        run = setting.sampler.stream(setting.weights, asked(sampling=replace(HOT, slots=5)))
        with jax.transfer_guard("disallow"):
            assert len(list(run)) == 24


@pytest.mark.heavy
def test_limits_of_their_own_end_completions_there(unending):
    limits = np.random.default_rng(0).integers(1, 25, 24).astype(np.int32)
    engine = unending.engine(sampling=replace(HOT, slots=5), limits=limits)
    assert [len(sampled.tokens) for sampled in engine] == limits.tolist()
    assert_same(engine, unending.plain(limits=limits))


def test_starting_a_completion_changes_no_bit_of_another_slot(setting):
    programs, mesh = setting.sampler.programs, setting.sampler.mesh
    split, rep = rules.leading(mesh), rules.replicated(mesh)
    tokens = np.random.default_rng(0).integers(3, 256, (3, 32)).astype(np.int32)
    with jax.set_mesh(mesh):
        placed = jax.device_put((tokens, np.array([5, 32, 20], np.int32)), split)
        prompts = programs.prefill(setting.weights, *placed, rows=3)
        slots = programs.empty(rows=6, capacity=64)
        entries = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2] * 2, range(6), [9] * 6], np.int32)
        before = programs.insert(slots, prompts, jax.device_put(entries, rep))
        kept = jax.device_get(before)
        entries = np.array([[3, 6, 6, 6, 6, 6], [1, 0, 0, 0, 0, 0], [7] * 6, [5] * 6], np.int32)
        after = jax.device_get(programs.insert(before, prompts, jax.device_put(entries, rep)))
    assert after.index.tolist() == [0, 1, 2, 7, 4, 5] and after.limit[3] == 5
    np.testing.assert_array_equal(after.cache.keys[0][3], kept.cache.keys[0][1])
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.delete(x, 3, axis=0), np.delete(y, 3, axis=0))


@pytest.mark.heavy
def test_pairs_of_tokens_follow_the_model_s_distribution():
    """4,096 completions of two tokens through 64 slots: chi-square over all 256 pairs."""
    cfg = replace(learning.CFG, vocab_size=16)
    small = Setting(cfg=cfg, stop_ids=())
    prompt, n = np.array([3, 7, 5], np.int32), 4096
    two = config.Sampling(temperature=1.0, max_completion_tokens=2, slots=64)
    drawn = np.stack([s.tokens for s in small.engine([prompt], group_size=n, sampling=two)])
    rows = jnp.asarray([[*prompt, first] for first in range(16)])
    model = nnx.merge(small.graphdef, small.params)
    hidden = hidden_states(
        model, rows, jnp.broadcast_to(jnp.arange(4), rows.shape), jnp.ones_like(rows)
    )
    probs = jax.nn.softmax(logits(hidden, model.embedding.get_value().T))
    expected = n * np.asarray(probs[0, 2][:, None] * probs[:, 3], np.float64)
    counts = np.zeros((16, 16))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)
    common = expected > 5
    statistic = np.sum((counts - expected)[common] ** 2 / expected[common])
    freedom = common.sum() - 1
    assert freedom > 50 and statistic < freedom + 5 * np.sqrt(2 * freedom), "5 sigma off"


@pytest.mark.heavy
@pytest.mark.parametrize("slots", [8, 48])
def test_a_long_completion_does_not_hold_the_others(unending, slots):
    """Lognormal lengths, median 1/8 of the limit: less than half of the plain loop's rows."""
    limits = lognormal_limits(48, 200)
    assert 15 < np.median(limits) < 35 and limits.max() > 100
    run, ended = unending.run(
        PROMPTS, group_size=8, sampling=replace(HOT, slots=slots), limits=limits
    )
    assert run.counts.tokens == limits.sum() == sum(len(s.tokens) for _, s in ended)
    assert run.counts.slot_steps < 0.5 * len(limits) * limits.max()
    order = [i for i, _ in ended]
    assert order.index(int(limits.argmin())) < order.index(int(limits.argmax()))


@pytest.mark.heavy
def test_the_cache_grows_with_the_longest_and_shrinks_after_it(unending):
    patient = replace(SCHEDULE, worth=1000)
    made, shapes = recorded(replace(unending.sampler, schedule=patient))
    limits = np.array([200, *[8] * 80], np.int32)
    engine = unending.engine(
        PROMPTS[:1], group_size=81, sampling=replace(HOT, slots=2), limits=limits, made=made
    )
    capacities = [capacity for _, capacity in shapes]
    assert sorted(capacities[:40]) == capacities[:40]
    assert capacities[0] == 32 and max(capacities) == 224 and capacities[-1] == 32
    changes = sum(a != b for a, b in itertools.pairwise(capacities))
    assert changes == 4, "32, 64, 128, 224 and back"
    assert_same(engine, unending.plain(PROMPTS[:1], group_size=81, limits=limits))


@pytest.mark.heavy
def test_slots_follow_the_live_completions_once_none_waits(unending):
    made, shapes = recorded(unending.sampler)
    limits = np.array([4] * 20 + [60] * 4, np.int32)
    unending.run(sampling=replace(HOT, slots=24), limits=limits, made=made)
    rows = [slots for slots, _ in shapes]
    assert rows[0] == 24 and rows[1] == 6 and len(rows) == 15


@pytest.mark.heavy
def test_a_group_shares_one_prefill_whenever_its_members_start(setting):
    run, ended = setting.run(group_size=7, sampling=replace(HOT, slots=3))
    assert len(ended) == 42 and run.counts.prefilled == len(PROMPTS)


@pytest.mark.heavy
def test_lengths_compile_few_programs_and_each_once():
    """Sizes of the cache and of the slots add up: two of each, and the last of both is one."""
    fresh = Setting(stop_ids=())
    made, shapes = recorded(fresh.sampler)

    def run_all():
        for seed in range(3):
            limits = np.random.default_rng(seed).integers(10, 60, 24).astype(np.int32)
            limits[12] = 60  # of the longest prompt
            fresh.run(sampling=replace(HOT, slots=6), limits=limits, made=made)
        return {n: p._cache_size() for n, p in vars(fresh.sampler.programs).items()}

    compiled = run_all()
    assert set(shapes) == {(6, 64), (6, 128), (2, 128), (1, 128)}
    assert compiled["decode"] == 4 and compiled["insert"] == 2
    assert compiled["prefill"] == compiled["empty"] == 1
    assert run_all() == compiled


@pytest.mark.heavy
def test_the_cache_is_updated_in_place(setting):
    programs, mesh = setting.sampler.programs, setting.sampler.mesh
    with jax.set_mesh(mesh):
        slots = jax.eval_shape(lambda: programs.empty(rows=8, capacity=96))
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rules.leading(mesh)),
            slots,
        )
        tokens, length = jnp.ones((2, 32), jnp.int32), jnp.ones(2, jnp.int32)
        prompts = jax.eval_shape(programs.prefill, setting.weights, tokens, length, rows=2)
        compiled = (
            programs.insert.lower(placed, prompts, jnp.zeros((4, 8), jnp.int32)).compile(),
            programs.decode.lower(
                setting.weights,
                placed,
                jax.random.key(0),
                settings(HOT),
                jnp.int32(8),
                steps=4,
            ).compile(),
        )
    cache = sum(x.size * x.dtype.itemsize for x in (*slots.cache.keys, *slots.cache.values))
    for program in compiled:
        assert program.memory_analysis().alias_size_in_bytes >= cache


@pytest.mark.heavy
@pytest.mark.parametrize(
    "meshes",
    [((8, 1, 1), (1, 4, 2)), pytest.param(((2, 2, 2),), marks=pytest.mark.slow)],
    ids=str,
)
def test_tokens_on_any_mesh_are_those_of_the_plain_loop(meshes):
    other_process.on_eight_devices(f"import test_engine; test_engine.compare_on_meshes({meshes})")


def compare_on_meshes(meshes):
    """Runs in the subprocess."""
    limits = np.array([3, 60, 5, 24] * 6, np.int32)
    plain = Setting().plain(limits=limits)
    for mesh in meshes:
        print(mesh, file=sys.stderr)  # shown where they differ
        compare_on_a_mesh(mesh, limits, plain)


def compare_on_a_mesh(mesh, limits, plain):
    """24 completions in 8 slots, which go down to one a shard."""
    many = Setting(mesh)
    run, ended = many.run(sampling=replace(HOT, slots=8), limits=limits)
    engine = [sampled for _, sampled in sorted(ended, key=lambda item: item[0])]
    assert_same(engine, plain)
    assert run.counts.resized > 0
    slots = many.sampler.programs.empty(rows=8, capacity=64)
    with jax.set_mesh(many.sampler.mesh):
        prompts = many.sampler.programs.prefill(
            many.weights, jnp.ones((8, 32), jnp.int32), jnp.ones(8, jnp.int32), rows=2
        )
    assert prompts.hidden.shape[0] == 2
    text = many.sampler.programs.insert.lower(slots, prompts, jnp.zeros((4, 8), jnp.int32))
    assert not any(word in text.compile().as_text() for word in ("all-gather", "all-reduce"))


class Words:
    """A tokenizer of nothing but numbers."""

    def decode(self, tokens):
        return " ".join(map(str, tokens))


EXAMPLES = [
    Example(id=str(i), messages=({"role": "user", "content": str(i)},), answer="", task="t")
    for i in range(len(PROMPTS))
]


def collected(setting, grade_many, made=None):
    with jax.set_mesh(setting.mesh):
        return collect(
            made or setting.sampler,
            setting.weights,
            asked(sampling=replace(HOT, slots=5)),
            examples=EXAMPLES,
            tokenizer=Words(),
            grade_many=grade_many,
        )


def grade(text, example, cut):
    return Grade(reward=float(len(text)), correct=cut, feedback=example.id)


@pytest.mark.heavy
def test_completions_are_graded_in_their_groups_while_others_are_decoded(setting):
    """The first grading waits for another loop, which would never come if sampling waited."""
    loops, calls = threading.Semaphore(0), []

    def decode(*args, **static):
        loops.release()
        return setting.sampler.programs.decode(*args, **static)

    def grade_many(texts, examples, cut):
        if not calls:
            while loops.acquire(blocking=False):
                pass
            assert loops.acquire(timeout=60)
        calls.append(len(texts))
        assert threading.current_thread() is not threading.main_thread()
        return [grade(*item) for item in zip(texts, examples, cut, strict=True)]

    made = replace(setting.sampler, programs=replace(setting.sampler.programs, decode=decode))
    groups = collected(setting, grade_many, made)
    by_plain = setting.plain()
    for g, (group, example) in enumerate(zip(groups, EXAMPLES, strict=True)):
        assert group.example is example
        pairs = zip(group.completions, group.grades, by_plain[4 * g : 4 * g + 4], strict=True)
        for completion, given, (tokens, _) in pairs:
            np.testing.assert_array_equal(completion.tokens, tokens)
            assert given == grade(Words().decode(tokens), example, completion.finish == "length")
    assert len(calls) > 1 and sum(calls) == 24


@pytest.mark.parametrize("fails", ["grader", "sampler"])
def test_a_failure_of_either_ends_both(setting, fails):
    def grade_many(texts, examples, cut):
        if fails == "grader":
            raise ZeroDivisionError(fails)
        return [grade(*item) for item in zip(texts, examples, cut, strict=True)]

    loops = []

    def decode(*args, **static):
        loops.append(1)
        if fails == "sampler" and len(loops) == 5:
            raise ZeroDivisionError(fails)
        return setting.sampler.programs.decode(*args, **static)

    made = replace(setting.sampler, programs=replace(setting.sampler.programs, decode=decode))
    with pytest.raises(ZeroDivisionError, match=fails):
        collected(setting, grade_many, made)


def test_capacities_are_few_and_change_with_hysteresis():
    def after(current, tokens):
        return generation.capacity(current, tokens, least=128, most=1280)

    assert [after(0, n) for n in (1, 128, 129, 700, 1100, 1280)] == [
        128,
        128,
        256,
        1024,
        1280,
        1280,
    ]
    assert after(1024, 257) == 1024 and after(1024, 256) == 256
    assert after(128, 1) == 128


def test_slots_fill_the_free_memory_and_are_a_power_of_two_a_shard():
    cfg = replace(
        learning.CFG,
        vocab_size=151_936,
        num_layers=28,
        layers=learning.CFG.layers[:1] * 28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        compute_dtype="bfloat16",
    )
    mesh, schedule = learning.make_mesh(), Schedule()

    def fit(capacity, gigabytes):
        return generation.slots_that_fit(cfg, mesh, capacity, schedule, gigabytes * 10**9)

    assert generation.token_bytes(cfg, mesh) == 114_688
    # 114,688 bytes a token: 21,504 of them are 2.5 GB, so 70 GB hold 16 and not 32.
    assert fit(21_504, 70) == 16 and fit(640, 70) == 256 and fit(21_504, 1) == 1
    assert generation.slots_that_fit(cfg, mesh, 21_504, schedule, None) == 256
    assert generation.free_bytes(mesh) is None


@pytest.mark.heavy
def test_engine_and_plain_loop_are_timed_on_the_same_lengths(unending):
    limits = lognormal_limits(24, 64)
    with jax.set_mesh(unending.mesh):
        found = engine_speed.compare(
            unending.sampler,
            unending.cfg,
            unending.weights,
            asked(limits=limits),
            batch=3,
        )
    plain_steps = 12 * (limits[:12].max() + limits[12:].max())
    assert found["plain loop"].slot_steps == plain_steps > found["engine"].slot_steps
    for one in found.values():
        assert one.tokens_per_s == pytest.approx(limits.sum() / one.later[0])
