"""The sampler: right tokens, right distribution, honest log-probabilities, no recompilation."""

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
from sdjax.models.network.transformer import Transformer, hidden_states, logits
from sdjax.rollout.engine import sampler, slots
from sdjax.rollout.engine.slots import settings
from sdjax.rollout.interface import SamplingRequest, sample

STOPS = (1, 2)
PROMPTS = [np.arange(3, 9), np.arange(40, 43), np.arange(100, 117)]
draw = jax.jit(slots.draw)
HOT = config.Sampling(temperature=1.0, max_completion_tokens=24)


class Setting:
    """A tiny model's sampler on a mesh."""

    def __init__(self, mesh=(1, 1, 1)):
        self.mesh = learning.make_mesh(*mesh)
        model = nnx.eval_shape(lambda: Transformer(learning.CFG, rngs=nnx.Rngs(0)))
        self.graphdef, abstract = nnx.split(model)
        self.params = jax.device_put(
            learning.random_params(abstract),
            learning.rules.param_shardings(abstract, self.mesh),
        )
        self.sampler = sampler.make(
            self.graphdef, learning.CFG, self.mesh, stop_ids=STOPS, pad_id=0
        )
        with jax.set_mesh(self.mesh):
            self.weights = self.sampler.weights(self.params)

    def sample(self, prompts=PROMPTS, group_size=4, sampling=HOT, key=0):
        request = SamplingRequest(
            prompts=prompts, group_size=group_size, sampling=sampling, key=jax.random.key(key)
        )
        with jax.set_mesh(self.mesh):
            return sample(self.sampler, self.weights, request)


@pytest.fixture(scope="module")
def setting():
    return Setting()


def tokens(groups):
    return [[c.tokens.tolist() for c in group] for group in groups]


def scored(setting, groups, temperature):
    """Returns float32[N, 24, V]: log-probabilities along every completion, by a forward pass."""
    rows = np.zeros((sum(map(len, groups)), 48), np.int32)
    starts = []
    for row, (prompt, c) in zip(
        rows, [(p, c) for p, g in zip(PROMPTS, groups, strict=True) for c in g], strict=True
    ):
        whole = np.concatenate([prompt, c.tokens])
        row[: len(whole)] = whole
        starts.append(len(prompt) - 1)

    @jax.jit
    def run(params, rows):
        model = nnx.merge(setting.graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(48), rows.shape)
        hidden = hidden_states(model, rows, positions, jnp.ones_like(rows))
        raw = logits(hidden, model.embedding.get_value().T)
        return jax.nn.log_softmax(raw / temperature)

    out = np.asarray(run(setting.params, rows))
    return np.stack([o[start : start + 24] for o, start in zip(out, starts, strict=True)])


def test_logprobs_are_those_of_a_forward_pass_at_the_sampling_temperature(setting):
    for temperature in (1.0, 0.7):
        groups = setting.sample(sampling=replace(HOT, temperature=temperature))
        forward = scored(setting, groups, temperature)
        for logprobs, c in zip(forward, [c for g in groups for c in g], strict=True):
            expected = logprobs[np.arange(len(c.tokens)), c.tokens]
            np.testing.assert_allclose(c.logprobs, expected, atol=1e-5)


def test_greedy_takes_the_likeliest_token_with_logprob_zero(setting):
    groups = setting.sample(sampling=replace(HOT, temperature=0.0))
    forward = scored(setting, groups, 1.0)
    for logprobs, c in zip(forward, [c for g in groups for c in g], strict=True):
        np.testing.assert_array_equal(c.tokens, logprobs.argmax(-1)[: len(c.tokens)])
        assert not c.logprobs.any()


def test_a_completion_ends_with_its_first_stop_token_or_at_the_limit(setting):
    completions = [c for g in setting.sample(group_size=32) for c in g]
    for c in completions:
        stops = np.isin(c.tokens, STOPS)
        assert not stops[:-1].any()
        assert (c.finish == "stop") == bool(stops[-1])
        assert c.finish == "stop" or len(c.tokens) == HOT.max_completion_tokens
    assert {c.finish for c in completions} == {"stop", "length"}


def test_a_completion_depends_neither_on_its_batch_nor_on_padding(setting):
    alone = setting.sample(prompts=PROMPTS[:1])
    beside = setting.sample(prompts=[PROMPTS[0], np.arange(5, 75)])
    assert tokens(alone)[0] == tokens(beside)[0]


def test_every_sample_and_every_key_draws_its_own_noise(setting):
    one, again, other = setting.sample(), setting.sample(), setting.sample(key=1)
    assert tokens(one) == tokens(again)
    flat = [tuple(t) for groups in (one, other) for g in tokens(groups) for t in g]
    assert len(set(flat)) == len(flat)


def test_sampling_settings_and_limits_compile_nothing(setting):
    setting.sample()
    programs = vars(setting.sampler.programs)
    compiled = {name: program._cache_size() for name, program in programs.items()}
    for changed in (
        {"temperature": 0.3},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"top_k": 7},
        {"max_completion_tokens": 9},
    ):
        groups = setting.sample(sampling=replace(HOT, **changed))
        assert max(len(c.tokens) for g in groups for c in g) <= 24
    assert {name: program._cache_size() for name, program in programs.items()} == compiled


def test_a_certain_token_is_drawn_with_logprob_zero():
    keys = jax.random.split(jax.random.key(0), 2)
    certain = jnp.full((2, 50), -1e9).at[:, 1].set(0.0)
    token, logprob = draw(certain, keys, settings(HOT))
    assert token.tolist() == [1, 1] and np.allclose(logprob, 0)


@pytest.mark.heavy
@pytest.mark.parametrize("size", marks.heavy_but([300], [7, 300]))
def test_draws_follow_the_distribution(size):
    rng = np.random.default_rng(size)
    raw = jnp.asarray(rng.normal(0, 2, size), jnp.float32)
    probs = np.asarray(jax.nn.softmax(raw / 0.8), np.float64)
    n = 40_000
    keys = jax.random.split(jax.random.key(5), n)
    how = settings(config.Sampling(temperature=0.8))
    token, logprob = draw(jnp.broadcast_to(raw, (n, size)), keys, how)
    counts = np.bincount(np.asarray(token), minlength=size)
    common = probs * n > 5
    statistic = np.sum((counts - probs * n)[common] ** 2 / (probs * n)[common])
    freedom = common.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom), "chi-square is 5 sigma off"
    np.testing.assert_allclose(logprob, np.log(probs)[np.asarray(token)], atol=1e-5)


def test_top_k_and_top_p_draw_only_from_their_sets_and_renormalise():
    raw = jnp.log(jnp.asarray([0.05, 0.4, 0.15, 0.3, 0.1]))
    keys = jax.random.split(jax.random.key(1), 4000)
    wide = jnp.broadcast_to(raw, (4000, 5))
    cases = (
        (config.Sampling(top_k=2), {1: 4 / 7, 3: 3 / 7}),
        (config.Sampling(top_p=0.65), {1: 4 / 7, 3: 3 / 7}),
        (config.Sampling(top_p=0.75), {1: 0.4 / 0.85, 3: 0.3 / 0.85, 2: 0.15 / 0.85}),
        # top-p takes its share of what top-k leaves.
        (config.Sampling(top_k=3, top_p=0.8), {1: 4 / 7, 3: 3 / 7}),
        (config.Sampling(top_p=0.01), {1: 1.0}),
    )
    for cfg, expected in cases:
        token, logprob = draw(wide, keys, settings(cfg))
        assert set(np.asarray(token).tolist()) == set(expected), cfg
        for t, lp in zip(np.asarray(token)[:50], np.asarray(logprob)[:50], strict=True):
            assert abs(lp - np.log(expected[int(t)])) < 1e-5


def test_impossible_tokens_are_never_drawn():
    raw = jnp.full((5000, 200), -jnp.inf).at[:, 60].set(0.0).at[:, 61].set(-12.0)
    token, logprob = draw(
        raw, jax.random.split(jax.random.key(2), 5000), settings(config.Sampling())
    )
    assert set(np.asarray(token).tolist()) <= {60, 61}
    assert np.isfinite(logprob).all()


# Keys fold_in(key(0), i) whose first number has 23 leading zeros or ones: a uniform float32 from it
# is 0 or the largest below 1.
LEAST = (15405709, 17906160, 18162686, 18288323)
MOST = (7848376, 15950188, 19019255, 20406291)


def test_the_least_and_the_largest_number_draw_the_token_that_has_the_probability():
    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in LEAST + MOST])
    uniform = jax.vmap(jax.random.uniform)(keys)
    assert uniform.tolist() == [0.0] * len(LEAST) + [1 - 2.0**-23] * len(MOST)
    # Every other token has probability 9e-27, before and behind the likely one.
    raw = jnp.full((len(keys), 1024), -60.0).at[:, 700].set(0.0)
    token, logprob = draw(raw, keys, settings(HOT))
    assert token.tolist() == [700] * len(keys) and np.allclose(logprob, 0)


def drawn_by(mass, number):
    """Returns the entry that the search finds for whole numbers under 2^44."""
    number = np.asarray(number, np.int64)
    high = jnp.asarray(number >> 20 << 8, jnp.uint32)
    low = jnp.asarray((number & (1 << 20) - 1) << 12, jnp.uint32)
    wide = jnp.broadcast_to(jnp.asarray(mass, jnp.float32), (len(number), len(mass)))
    return np.asarray(jax.jit(slots._search)(wide, high, low))


@pytest.mark.parametrize("rare", [3e-8, 1e-9, 1e-11])
def test_a_rare_entry_is_drawn_by_its_share_of_the_numbers_wherever_it_stands(rare):
    for at in (0, 1, 5, 9):
        mass = np.zeros(10, np.float32)
        mass[[2, 7, at]] = 0.5, 0.5, rare
        first, last = np.cumsum(mass, dtype=np.float64)[[at - 1, at]] if at else (0.0, rare)
        units = 2**44 / (1 + rare)
        near = np.linspace(first * units - 2000, last * units + 2000, 600)
        near = near[(near >= 0) & (near < 2**44)]
        found = drawn_by(mass, near)
        inside = (near > first * units + 3) & (near < last * units - 3)
        outside = (near < first * units - 3) | (near > last * units + 3)
        assert np.count_nonzero(inside) > 10 and np.all(found[inside] == at)
        assert np.all(found[outside] != at) and set(found) <= {2, 7, at}


def test_a_search_never_ends_at_an_entry_without_mass():
    # 20 of 151,936 entries have mass. The last rows differ in scale.
    logits = 3 * np.random.default_rng(0).standard_normal((12, 151_936))
    order = np.sort(logits, axis=-1)
    logits = np.where(logits >= order[:, -20:-19], logits, -np.inf)
    probs = np.exp(logits - order[:, -1:]).astype(np.float32)
    probs[6:] *= 10.0 ** np.arange(-15, 15, 5)[:, None]
    mass = probs.reshape(12, -1, slots.BLOCK).sum(-1)
    edges = np.cumsum(mass.astype(np.float64), axis=-1) / mass.sum(-1, dtype=np.float64)[:, None]
    for row, of_row in zip(mass, edges, strict=True):
        at = (np.unique(of_row) * 2**44).astype(np.int64)[:, None] + np.arange(-3, 4) * 2**18
        numbers = np.clip(np.concatenate([at.ravel(), [0, 2**44 - 1]]), 0, 2**44 - 1)
        # As many for every row, for one program.
        assert np.all(row[drawn_by(row, np.resize(numbers, 150))] > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limit", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_logits_that_are_not_finite_give_no_logprob(bad, temperature, limit):
    raw = jnp.zeros((3, 200)).at[1, 150].set(bad).at[2].set(bad)
    how = settings(config.Sampling(temperature=temperature, **limit))
    token, logprob = draw(raw, jax.random.split(jax.random.key(0), 3), how)
    assert np.isfinite(logprob).tolist() == [True, False, False]
    assert np.all((0 <= token) & (token < 200))


def test_the_ends_of_every_setting_keep_the_samplers_promise():
    rng = np.random.default_rng(0)
    raw = jnp.asarray(rng.normal(0, 300, (64, 300)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 64)
    best = np.argmax(raw, axis=-1)
    for cfg in (
        config.Sampling(temperature=1e-6),
        config.Sampling(top_k=1),
        config.Sampling(top_p=1.2e-38),
        config.Sampling(top_p=1.2e-38, top_k=2**40, temperature=1e-6),
    ):
        token, logprob = draw(raw, keys, settings(cfg))
        np.testing.assert_array_equal(token, best, err_msg=str(cfg))
        np.testing.assert_allclose(logprob, 0, atol=1e-6, err_msg=str(cfg))
    for cfg in (
        config.Sampling(top_k=300),
        config.Sampling(top_k=2**40),
        config.Sampling(top_p=1 - 1e-12),
    ):
        token, logprob = draw(raw / 300, keys, settings(cfg))
        plain = draw(raw / 300, keys, settings(HOT))
        np.testing.assert_array_equal(token, plain[0], err_msg=str(cfg))
        np.testing.assert_allclose(logprob, plain[1], atol=1e-5, err_msg=str(cfg))
    flat = draw(raw, keys, settings(config.Sampling(temperature=1e30)))
    np.testing.assert_allclose(flat[1], -np.log(300), rtol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_tokens_on_a_mesh_are_those_of_one_device(mesh):
    other_process.on_eight_devices(
        f"import test_sampler; test_sampler.compare_with_one_device({mesh!r})"
    )


def compare_with_one_device(name):
    """Runs in the subprocess."""
    mesh = tuple(int(n) for n in name.split("x"))
    one, many = Setting().sample(), Setting(mesh).sample()
    assert tokens(one) == tokens(many)
    for a, b in zip(one, many, strict=True):
        for c, d in zip(a, b, strict=True):
            np.testing.assert_allclose(c.logprobs, d.logprobs, atol=1e-5)
