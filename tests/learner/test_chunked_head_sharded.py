"""The chunked head on 8 fake CPU devices, in a process of its own: their number is fixed early."""

import other_process
import pytest

SCRIPT = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sdjax.config import Loss
from sdjax.parallel import mesh as meshes, rules
from sdjax.learner.chunked_head import (
    Context, Contexts, HeadSpec, Tokens, token_loss, token_outputs)

R, C, D, V, CHUNK = 8, 24, 24, 2048, 16
k = jax.random.split(jax.random.key(0), 7)
hidden = jax.random.normal(k[0], (R, C, D))
teacher = hidden + jax.random.normal(k[1], (R, C, D))
heads = [(2 / D**0.5) * jax.random.normal(x, (D, V)) for x in k[2:4]]
token = jax.random.randint(k[4], (R, C), 0, V)
mask = jax.random.bernoulli(k[5], 0.8, (R, C))
args = (hidden, heads[0], heads[1], teacher, heads[0] + 0.3 * heads[1], token, mask,
        jax.random.uniform(k[6], (R, C)))

def of_token(o, weight):
    return weight * (o.divergence + 0.1 * o.student_logprob)

def make(way, cfg):
    def f(h, w, sums, th, tw, token, mask, weight):
        contexts = Contexts(student=Context(hidden=h, head=w),
                            teachers={"solution": Context(hidden=th, head=tw)})
        tokens = Tokens(token=token, mask=mask, known=weight)
        spec = HeadSpec(loss=cfg, temperature=0.7)
        if way == "sums":
            return token_loss(of_token, contexts, tokens, spec, sums)
        if way == "loss":
            return token_loss(of_token, contexts, tokens, spec)
        o = token_outputs(contexts, tokens, spec)
        return jnp.sum(of_token(o, weight)), o
    return jax.value_and_grad(f, (0, 2 if way == "sums" else 1), has_aux=True)

def gathered(program):
    # Shapes of what is gathered, and how many heads are: each once, before the scan.
    text = program.as_text()
    lines = re.findall(r"= \\(?\\w+\\[([\\d,]+)\\]\\S* all-(?:gather|to-all)", text)
    shapes = [tuple(int(n) for n in line.split(",")) for line in lines]
    assert len(shapes) == len(re.findall(r" all-(?:gather|to-all)(?:-start)?\\(", text))
    return [s for s in shapes if s[0] != D], sum(s[0] == D for s in shapes)

CASES = [
    ("loss", Loss(chunk_tokens=CHUNK), [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]),
    ("loss", Loss(divergence="top_k", top_k=20, chunk_tokens=CHUNK), [(2, 2, 2), (1, 1, 8)]),
    ("outputs", Loss(divergence="top_k", top_k=20, top_k_by="teacher", tail=False,
                     chunk_tokens=CHUNK), [(1, 4, 2)]),
    ("sums", Loss(chunk_tokens=CHUNK), [(2, 2, 2), (1, 1, 8)]),
]
heads_of = {}
for way, cfg, shapes in CASES:
    f = make(way, cfg)
    want = jax.jit(f)(*args)
    for shape in shapes:
        # Half of the first axis is the experts', whose devices split rows and no head.
        shape = (shape[0] // 2, 2, *shape[1:]) if shape[0] > 1 else (1, *shape)
        mesh = jax.make_mesh(shape, meshes.NAMES, axis_types=(AxisType.Auto,) * 4)
        row, head = (NamedSharding(mesh, P(*s)) for s in ((rules.BATCH,), ("fsdp", "tensor")))
        with jax.set_mesh(mesh):
            placed = jax.device_put(args, (row, head, head, row, head, row, row, row))
            out = ((None, None), (row, head))
            program = jax.jit(f, out_shardings=out).lower(*placed).compile()
            got = program(*placed)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            scale = float(jnp.max(jnp.abs(b)))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)
        # Of a chunk's logits at most the maxima of blocks are gathered, for the selection.
        logits, number = gathered(program)
        large = [s for s in logits if np.prod(s) > CHUNK * V // 8]
        assert not large, (way, cfg, shape, large)
        if way == "sums":  # of which none are gathered
            assert number == heads_of[shape], (shape, number)
        elif cfg.divergence == "full":
            heads_of[shape] = number
print("agree")
"""


@pytest.mark.heavy
def test_results_do_not_depend_on_the_mesh_and_logits_are_never_gathered():
    assert other_process.on_eight_devices(SCRIPT).strip() == "agree"
