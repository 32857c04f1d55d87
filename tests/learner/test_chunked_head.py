import dataclasses
import json
import re

import forked
import jax
import jax.numpy as jnp
import marks
import numpy as np
import pytest
from paths import GOLDEN

from sdjax.config import Loss
from sdjax.config.sections.target import SOLUTION
from sdjax.learner.chunked_head import (
    LIVE,
    Context,
    Contexts,
    HeadSpec,
    TokenOutputs,
    Tokens,
    token_loss,
    token_outputs,
)
from sdjax.objectives import divergences

R, C, D, V = 3, 20, 16, 200


def given(seed=0, dtype=jnp.float32):
    """Returns hidden states, heads and tokens whose logits have a spread of about 2."""
    k = jax.random.split(jax.random.key(seed), 7)
    hidden = jax.random.normal(k[0], (R, C, D), dtype)
    teacher = hidden + jax.random.normal(k[1], (R, C, D), dtype)
    heads = [(2 / D**0.5) * jax.random.normal(k[i], (D, V)) for i in (2, 3)]
    return {
        "student_hidden": hidden,
        "student_head": heads[0],
        "teacher_hidden": teacher,
        "teacher_head": (heads[0] + 0.3 * heads[1]).astype(dtype),
        "token": jax.random.randint(k[4], (R, C), 0, V),
        "mask": jax.random.bernoulli(k[5], 0.8, (R, C)),
    }, jax.random.uniform(k[6], (R, C))


def typed(x, known=None):
    """Returns the contexts and tokens of `given`."""
    teachers = {SOLUTION: Context(hidden=x["teacher_hidden"], head=x["teacher_head"])}
    contexts = Contexts(
        student=Context(hidden=x["student_hidden"], head=x["student_head"]),
        teachers={} if x["teacher_hidden"] is None else teachers,
    )
    return contexts, Tokens(token=x["token"], mask=x["mask"], known=known)


def plain_forks(logits):
    """Returns 1.0 where the entropy is high and 1.0 where a fork is, at the logits' temperature."""
    p = jax.nn.softmax(logits)
    high = -jnp.sum(p * jnp.log(p), -1) >= 0.672
    return high.astype(jnp.float32), (high & (jnp.sort(p)[..., -2] >= 0.1)).astype(jnp.float32)


def whole(x, cfg, temperature):
    """Returns the outputs from whole logits [R, C, V] by the plainest formulas."""
    student = x["student_hidden"] @ x["student_head"] / temperature
    teacher = x["teacher_hidden"] @ x["teacher_head"] / temperature
    a, b = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    p, q = jnp.exp(a), jnp.exp(b)
    at = x["token"][..., None]
    (high, fork), (_, teacher_fork) = (plain_forks(temperature * y) for y in (student, teacher))
    out = TokenOutputs(
        divergence=divergences.get(cfg.divergence)(student, teacher, x["token"], cfg),
        student_logprob=jnp.take_along_axis(a, at, -1)[..., 0],
        teacher_logprob=jnp.take_along_axis(b, at, -1)[..., 0],
        student_entropy=-jnp.sum(p * a, -1),
        teacher_entropy=-jnp.sum(q * b, -1),
        top1_agree=(jnp.argmax(a, -1) == jnp.argmax(b, -1)).astype(jnp.float32),
        reverse_kl=jnp.sum(p * (a - b), -1),
        student_high=high,
        student_fork=fork,
        teacher_fork=teacher_fork,
    )
    return jax.tree.map(lambda y: jnp.where(x["mask"], y, 0.0), out)


def of_token(outputs, weight):
    """A loss with a term in both outputs that are learned from."""
    return weight * (outputs.divergence + 0.1 * jnp.exp(outputs.student_logprob))


def near(got, want, rtol):
    got, want = jnp.asarray(got, jnp.float32), jnp.asarray(want, jnp.float32)
    scale = float(jnp.max(jnp.abs(want)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale)


SECTIONS = {
    "full": Loss(),
    "forward": Loss(alpha=0.0),
    "reverse": Loss(alpha=1.0, token_clip=1.0, pointwise_clip=0.1),
    "top_k": Loss(divergence="top_k", top_k=7),
    "teacher_top_k": Loss(divergence="top_k", top_k=7, top_k_by="teacher", tail=False),
    "sampled": Loss(divergence="sampled"),
}


@pytest.mark.parametrize("name", marks.heavy_but(["full", "sampled", "top_k"], SECTIONS))
def test_chunked_outputs_and_gradients_are_those_of_whole_logits(name):
    x, weight = given()
    want = whole(x, SECTIONS[name], 0.7)

    def by_whole(h, w):
        moved = {**x, "student_hidden": h, "student_head": w}
        each = of_token(whole(moved, SECTIONS[name], 0.7), weight)
        return jnp.sum(jnp.where(x["mask"], each, 0.0))

    want_grad = jax.jit(jax.grad(by_whole, (0, 1)))(x["student_hidden"], x["student_head"])
    want_total = by_whole(x["student_hidden"], x["student_head"])
    cfg = dataclasses.replace(SECTIONS[name], chunk_tokens=7)

    def by_outputs(h, w):
        moved = {**x, "student_hidden": h, "student_head": w}
        out = token_outputs(*typed(moved), HeadSpec(loss=cfg, temperature=0.7))
        return jnp.sum(jnp.where(x["mask"], of_token(out, weight), 0.0)), out

    def by_loss(h, w):
        moved = {**x, "student_hidden": h, "student_head": w}
        return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=cfg, temperature=0.7))

    for f in (by_outputs, by_loss) if name == "full" else (by_loss,):
        run = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))
        (total, out), grad = run(x["student_hidden"], x["student_head"])
        jax.tree.map(lambda g, w: near(g, w, 1e-5), (out, grad), (want, want_grad))
        near(total, want_total, 1e-5)


@pytest.mark.parametrize("name", marks.heavy_but(["full"], ["full", "top_k"]))
def test_a_head_that_is_the_embedding_gives_the_same_turned(name):
    x, weight = given()

    def by_loss(h, w, turned):
        heads = {"student_head": w, "teacher_head": x["teacher_head"]}
        heads = {k: v.T for k, v in heads.items()} if turned else heads
        moved = {**x, **heads, "student_hidden": h}
        spec = HeadSpec(loss=SECTIONS[name], temperature=0.7, vocab_first=turned)
        return token_loss(of_token, *typed(moved, weight), spec)

    at = x["student_hidden"], x["student_head"]
    run = jax.jit(jax.value_and_grad(by_loss, (0, 1), has_aux=True), static_argnums=2)
    jax.tree.map(lambda g, w: near(g, w, 1e-5), run(*at, True), run(*at, False))


@pytest.mark.parametrize("name", marks.heavy_but(["full"], ["full", "top_k", "reverse"]))
def test_the_reductions_that_a_gpu_runs_give_the_same(name, monkeypatch):
    x, weight = given()

    def run():
        def total(h, w):
            moved = {**x, "student_hidden": h, "student_head": w}
            return token_loss(
                of_token, *typed(moved, weight), HeadSpec(loss=SECTIONS[name], temperature=0.7)
            )

        at = x["student_hidden"], x["student_head"]
        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*at)

    want = run()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.tree.map(lambda g, w: near(g, w, 1e-5), run(), want)


def test_a_loss_said_to_be_of_the_divergence_alone_has_the_same_gradient_in_one_pass():
    x, weight = given()

    def total(h, w, of_logprob):
        moved = {**x, "student_hidden": h, "student_head": w}
        spec = HeadSpec(loss=Loss(), temperature=0.7, of_logprob=of_logprob)
        return token_loss(lambda out, e: e * out.divergence, *typed(moved, weight), spec)

    at = x["student_hidden"], x["student_head"]
    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    jax.tree.map(lambda g, w: near(g, w, 1e-6), run(*at, False), run(*at, True))


@pytest.mark.parametrize("chunk", marks.heavy_but([13, 59, 1000], [1, 13, 59, 60, 1000]))
def test_the_chunk_size_changes_nothing(chunk):
    x, weight = given()

    def total(h, w, cfg):
        moved = {**x, "student_hidden": h, "student_head": w}
        return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=cfg, temperature=1.0))

    at = x["student_hidden"], x["student_head"]
    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    want, got = (run(*at, Loss(divergence="sampled", chunk_tokens=c)) for c in (R * C, chunk))
    jax.tree.map(lambda g, w: near(g, w, 1e-5), got, want)


def test_the_gradient_scales_with_what_multiplies_the_loss():
    x, weight = given()

    def total(h, w, times):
        moved = {**x, "student_hidden": h, "student_head": w}
        return (
            times
            * token_loss(of_token, *typed(moved, weight), HeadSpec(loss=Loss(), temperature=1.0))[0]
        )

    at = x["student_hidden"], x["student_head"]
    run = jax.jit(jax.grad(total, (0, 1)))
    once, thrice = (run(*at, t) for t in (1.0, -3.0))
    jax.tree.map(lambda a, b: near(b, -3.0 * a, 1e-6), once, thrice)


@pytest.mark.parametrize("name", marks.heavy_but(["full"], ["full", "top_k"]))
def test_masked_rows_give_zeros_whatever_they_hold(name):
    x, weight = given()
    mask = x["mask"].at[1].set(False)
    junk = jnp.where(mask[..., None], 0.0, jnp.array([jnp.nan, jnp.inf, -1e30, 1e30] * (D // 4)))
    bad = {
        **x,
        "mask": mask,
        "student_hidden": jnp.where(mask[..., None], x["student_hidden"], junk),
        "teacher_hidden": jnp.where(mask[..., None], x["teacher_hidden"], junk),
    }
    bad_weight = jnp.where(mask, weight, jnp.nan)
    cfg = Loss(divergence=name, top_k=9, chunk_tokens=8)

    def by_outputs(h, w):
        moved = {**bad, "student_hidden": h, "student_head": w}
        out = token_outputs(*typed(moved), spec)
        return jnp.sum(jnp.where(mask, of_token(out, bad_weight), 0.0)), out

    def by_loss(h, w):
        moved = {**bad, "student_hidden": h, "student_head": w}
        return token_loss(of_token, *typed(moved, bad_weight), spec)

    spec = HeadSpec(loss=cfg, temperature=1.0)
    for f in (by_outputs, by_loss) if name == "full" else (by_loss,):
        run = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))
        (total, out), (hidden, head) = run(bad["student_hidden"], bad["student_head"])
        assert np.isfinite(total) and np.all(np.isfinite(head)) and np.all(np.isfinite(hidden))
        assert np.all(np.asarray(hidden)[~mask] == 0) and np.any(np.asarray(hidden)[mask] != 0)
        for y in jax.tree.leaves(out):
            assert np.all(np.asarray(y)[~mask] == 0)


def test_extreme_logits_make_no_nan():
    x, weight = given()
    x["student_hidden"] = 1e4 * x["student_hidden"]
    for name in ("full", "top_k", "sampled"):
        cfg = Loss(divergence=name, top_k=5, alpha=0.5)

        def total(h, w, cfg=cfg):
            moved = {**x, "student_hidden": h, "student_head": w}
            return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=cfg, temperature=0.5))

        run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        got = run(x["student_hidden"], x["student_head"])
        assert all(np.all(np.isfinite(y)) for y in jax.tree.leaves(got))


def test_without_a_teacher_only_the_student_is_described():
    x, _ = given()
    x |= {"teacher_hidden": None, "teacher_head": None}
    spec = HeadSpec(loss=Loss(), temperature=1.0)

    def total(h):
        out = token_outputs(*typed({**x, "student_hidden": h}), spec)
        return jnp.sum(out.student_logprob), out

    (_, out), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(x["student_hidden"])
    assert np.any(grad != 0) and np.any(out.student_entropy != 0)
    for name in ("divergence", "teacher_logprob", "teacher_entropy", "reverse_kl"):
        assert np.all(getattr(out, name) == 0)
    likeliest = jnp.argmax(x["student_hidden"] @ x["student_head"], -1)
    # Half of the tokens are made the likeliest one, so that both outcomes occur.
    token = jnp.where(jnp.arange(likeliest.shape[1]) % 2 == 0, likeliest, likeliest + 1)
    again = token_outputs(*typed({**x, "token": token}), spec)
    assert np.array_equal(again.top1_agree, (token == likeliest) & x["mask"])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_forks_are_those_at_temperature_1_of_a_float64_reference(temperature):
    x, _ = given()
    x |= {f"{of}_head": 3 * x[f"{of}_head"] for of in ("student", "teacher")}
    spec = HeadSpec(loss=Loss(chunk_tokens=7), temperature=temperature)
    alone, both = (
        token_outputs(*typed({**x, **without}), spec)
        for without in ({"teacher_hidden": None, "teacher_head": None}, {})
    )
    (high, fork), (_, of_teacher) = (
        forked.flags(np.asarray(x[f"{of}_hidden"], np.float64) @ np.asarray(x[f"{of}_head"]))
        for of in ("student", "teacher")
    )
    mask = np.asarray(x["mask"])
    assert 0.2 < fork[mask].mean() < high[mask].mean() < 0.95 and (fork != of_teacher).any()
    for out, wanted in ((alone, 0 * of_teacher), (both, of_teacher)):
        np.testing.assert_array_equal(out.student_high, high & mask)
        np.testing.assert_array_equal(out.student_fork, fork & mask)
        np.testing.assert_array_equal(out.teacher_fork, wanted * mask)


def test_logits_that_are_not_finite_are_no_fork_and_no_place_without_one():
    x, _ = given()
    x["student_hidden"] = x["student_hidden"].at[0, 0].set(jnp.nan)
    x["mask"] = x["mask"].at[0].set(True)
    out = token_outputs(*typed(x), HeadSpec(loss=Loss(), temperature=1.0))
    for found in (out.student_high, out.student_fork):
        assert np.isnan(found[0, 0]) and np.isfinite(found[0, 1:]).all()


def test_the_heads_gradient_is_added_to_the_sums_given_and_none_goes_to_the_head():
    x, weight = given()
    sums = jax.random.normal(jax.random.key(1), x["student_head"].shape)
    cfg = Loss(chunk_tokens=7)

    def by_outputs(h, w, sums=None):
        moved = {**x, "student_hidden": h, "student_head": w}
        out = token_outputs(*typed(moved), HeadSpec(loss=cfg, temperature=0.7), sums)
        return jnp.sum(jnp.where(x["mask"], of_token(out, weight), 0.0))

    def by_loss(h, w, sums=None):
        moved = {**x, "student_hidden": h, "student_head": w}
        spec = HeadSpec(loss=cfg, temperature=0.7)
        return token_loss(of_token, *typed(moved, weight), spec, sums)[0]

    for f in (by_outputs, by_loss):
        hidden, head = jax.jit(jax.grad(f, (0, 1)))(x["student_hidden"], x["student_head"])
        got = jax.jit(jax.grad(f, (0, 1, 2)))(x["student_hidden"], x["student_head"], sums)
        assert jnp.max(jnp.abs(head)) > 0.1
        jax.tree.map(lambda g, w: near(g, w, 1e-6), got, (hidden, 0 * head, sums + head))


def test_a_scaled_loss_with_sums_is_not_a_number_instead_of_half_scaled():
    x, weight = given()

    def total(h, sums):
        spec = HeadSpec(loss=Loss(), temperature=1.0)
        return 3 * token_loss(of_token, *typed({**x, "student_hidden": h}, weight), spec, sums)[0]

    hidden = jax.grad(total)(x["student_hidden"], jnp.zeros((D, V)))
    assert np.isnan(hidden).all()


def test_no_second_array_of_a_heads_size_exists_with_sums():
    x, weight = given()
    head = jnp.zeros((D, 50 * V))
    moved = {**x, "student_head": head, "teacher_head": head}
    cfg = Loss(chunk_tokens=4)

    def total(h, sums=None):
        spec = HeadSpec(loss=cfg, temperature=1.0)
        return token_loss(of_token, *typed({**moved, "student_head": h}, weight), spec, sums)[0]

    def added(sums):
        return jax.grad(total, 1)(head, sums)

    def behind(sums):
        return sums + jax.grad(total)(head)

    with_sums, without = (
        jax.jit(f, donate_argnums=0).lower(head).compile().memory_analysis().temp_size_in_bytes
        for f in (added, behind)
    )
    assert with_sums < without - 0.9 * head.nbytes


def test_only_the_students_arrays_get_a_gradient():
    x, weight = given()

    def total(th, tw, weight):
        moved = {**x, "teacher_hidden": th, "teacher_head": tw}
        return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=Loss(), temperature=1.0))[
            0
        ]

    for g in jax.jit(jax.grad(total, (0, 1, 2)))(x["teacher_hidden"], x["teacher_head"], weight):
        assert np.all(g == 0)


@pytest.mark.heavy
def test_a_float32_head_gets_a_float32_gradient_under_bfloat16_hidden_states():
    x, weight = given(dtype=jnp.bfloat16)

    def total(h, w):
        moved = {**x, "student_hidden": h, "student_head": w}
        cfg = Loss(chunk_tokens=16)
        return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=cfg, temperature=1.0))[0]

    rounded = {k: v.astype(jnp.bfloat16) if "head" in k else v for k, v in x.items()}
    exact = {k: v.astype(jnp.float32) if v.dtype == jnp.bfloat16 else v for k, v in rounded.items()}

    def exactly(h, w):
        moved = {**exact, "student_hidden": h, "student_head": w}
        return jnp.sum(jnp.where(x["mask"], of_token(whole(moved, Loss(), 1.0), weight), 0.0))

    value, (hidden, head) = jax.value_and_grad(total, (0, 1))(
        x["student_hidden"], x["student_head"]
    )
    want, want_grad = jax.jit(jax.value_and_grad(exactly, (0, 1)))(
        exact["student_hidden"], exact["student_head"]
    )
    assert hidden.dtype == jnp.bfloat16 and head.dtype == jnp.float32
    near(value, want, 1e-5)
    # The gradient by the logits is rounded to bfloat16, 8 bits, once.
    assert jnp.linalg.norm(head - want_grad[1]) < 4e-3 * jnp.linalg.norm(want_grad[1])
    assert jnp.linalg.norm(hidden - want_grad[0]) < 4e-3 * jnp.linalg.norm(want_grad[0])


@pytest.mark.heavy
def test_trust_region_teacher_mixes_logits_as_the_reference():
    z = np.load(GOLDEN / "trust_region.npz")
    for case in json.loads(str(z["cases_json"])):
        ref, student, tokens, *_ = (
            z[f"{case['name']}/{k}"] for k in ("ref_logits", "student_logits", "tokens")
        )
        positions, size = tokens.size, ref.shape[-1]
        # Hidden states that pick a row of a head that holds the logits, once for every token.
        pick = jnp.repeat(jnp.eye(positions), size, axis=0)[None]
        heads = {SOLUTION: ref, LIVE: student}
        contexts = Contexts(
            student=Context(hidden=pick, head=jnp.zeros((positions, size))),
            teachers={
                name: Context(hidden=pick, head=jnp.asarray(head.reshape(positions, size)))
                for name, head in heads.items()
            },
        )
        every = Tokens(
            token=jnp.tile(jnp.arange(size), positions)[None],
            mask=jnp.ones((1, positions * size), bool),
        )
        temperature, mix = case["temperature"], case["mix_coef"]
        loss = Loss(chunk_tokens=300)
        out = token_outputs(contexts, every, HeadSpec(loss=loss, temperature=temperature, mix=mix))
        got = np.asarray(out.teacher_logprob).reshape(ref.shape)
        atol = 1e-4 if np.max(np.abs(ref)) > 50 else 1e-5
        want = z[f"{case['name']}/all_log_probs_f64"]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol)
        own = np.take_along_axis(got, tokens[..., None], -1)[..., 0]
        want = z[f"{case['name']}/token_log_probs_f64"]
        np.testing.assert_allclose(own, want, rtol=1e-5, atol=atol)


FULL_SIZE = {"T": 4096, "D": 2048, "V": 151936}


def compiled_at_full_size(f):
    t, d, v = FULL_SIZE.values()
    array = jax.ShapeDtypeStruct
    rows, heads = array((1, t, d), jnp.float32), array((d, v), jnp.float32)
    rest = array((1, t), jnp.int32), array((1, t), bool)
    return jax.jit(jax.value_and_grad(f, (0, 1))).lower(rows, heads, rows, heads, *rest).compile()


@pytest.mark.parametrize(
    ("name", "way"),
    marks.heavy_but([("full", "loss")], [("full", "loss"), ("full", "outputs"), ("top_k", "loss")]),
)
def test_loss_and_gradient_fit_in_memory_and_no_whole_logits_exist(name, way):
    cfg = Loss(divergence=name, chunk_tokens=256)

    def f(h, w, th, tw, token, mask):
        given = {"student_hidden": h, "student_head": w, "teacher_hidden": th, "teacher_head": tw}
        given |= {"token": token, "mask": mask}
        spec = HeadSpec(loss=cfg, temperature=1.0)
        if way == "outputs":
            return jnp.sum(token_outputs(*typed(given), spec).divergence)
        return token_loss(lambda o, _: o.divergence, *typed(given), spec)[0]

    program = compiled_at_full_size(f)
    memory = program.memory_analysis()
    t, d, v = FULL_SIZE.values()
    assert memory.output_size_in_bytes >= 4 * d * v, "the head's gradient is an output"
    assert memory.temp_size_in_bytes <= 1.5 * 2**30
    assert not re.search(rf"\[(1,)?{t},{v}\]", program.as_text())


def test_a_new_divergence_is_one_function_and_one_line(monkeypatch):
    def squared(student, teacher, token, cfg):
        del token, cfg
        gap = jax.nn.softmax(student) - jax.nn.softmax(teacher)
        return jnp.sum(gap**2, axis=-1)

    monkeypatch.setitem(divergences.DIVERGENCES, "squared", squared)
    x, weight = given()
    cfg = Loss(divergence="squared", chunk_tokens=9)

    def total(h):
        moved = {**x, "student_hidden": h}
        return token_loss(of_token, *typed(moved, weight), HeadSpec(loss=cfg, temperature=1.0))[0]

    def wanted(h):
        each = of_token(whole({**x, "student_hidden": h}, cfg, 1.0), weight)
        return jnp.sum(jnp.where(x["mask"], each, 0.0))

    got, want = (jax.jit(jax.value_and_grad(f))(x["student_hidden"]) for f in (total, wanted))
    jax.tree.map(lambda g, w: near(g, w, 1e-5), got, want)
