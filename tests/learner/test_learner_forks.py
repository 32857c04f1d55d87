"""Fork rates of an update: those of whole logits in float64, in any rows and on any mesh."""

import functools
from dataclasses import replace

import forked
import jax
import learning
import numpy as np
import other_process
import pytest
from flax import nnx
from learning import PLAIN

from sdjax.models.network import transformer

NAMES = (
    *("student/fork_rate", "student/fork_share", "distill/student_fork_rate"),
    *("distill/student_fork_share", "distill/teacher_fork_rate", "distill/teacher_fork_share"),
)


@functools.cache
def cfg(row_tokens=0):
    return learning.train_config(
        optim=PLAIN | {"row_tokens": row_tokens},
        loss={"distillation": 0.5},
        teacher={"dtype": "float32"},
    )


def sharpened(params):
    """Returns params whose logits are 4 times as large, so that many positions are forks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 4 * x if jax.tree_util.keystr(path[:1]) == "['norm']" else x, params
    )


def rates(row_tokens, mesh=(1, 1, 1)):
    """Returns the fork rates of a step of one update."""
    learner = learning.Learner(cfg(row_tokens), learning.make_mesh(*mesh))
    state = learner.state
    learner.state = replace(
        state, params=sharpened(state.params), teacher_params=sharpened(state.teacher_params)
    )
    found = learning.of_step([learner.update(learning.pack(cfg(row_tokens)))])
    assert not [name for name in found if name.endswith(("high_entropy", "_sum"))]
    return {name: found[name] for name in NAMES}


@functools.cache
def wanted():
    """Returns the same from whole logits, completion by completion."""
    learner, groups = learning.Learner(cfg(), learning.make_mesh()), learning.groups()
    model = nnx.merge(learner.graphdef, sharpened(learner.state.params))
    flags = {"student": [], "teacher": []}
    of_groups, advantage = learning.reprompts(groups), learning.pack(cfg()).samples.advantage
    distilled = np.array([r.distilled for of in of_groups for r in of])
    forward = jax.jit(lambda x: transformer.hidden_states(model, x, np.arange(96)[None], None))
    for group, of in zip(groups, of_groups, strict=True):
        for completion, seen in zip(group.completions, of, strict=True):
            for name, prompt in (("student", group.prompt), ("teacher", seen.tokens)):
                tokens = np.zeros((1, 96), np.int32)
                both = np.concatenate([prompt, completion.tokens])
                tokens[0, : len(both)] = both
                hidden = forward(tokens)[0, len(prompt) - 1 : len(both) - 1]
                head = np.asarray(transformer.head_matrix(model), np.float64)
                flags[name].append(forked.flags(np.asarray(hidden, np.float64) @ head.T))

    def joined(of, part, where):
        return np.concatenate([f[part] for f, w in zip(flags[of], where, strict=True) if w])

    out = {}
    learned = distilled | (np.asarray(advantage) != 0)
    for prefix, of, where in (
        ("student/", "student", learned),
        ("distill/student_", "student", distilled),
        ("distill/teacher_", "teacher", distilled),
    ):
        fork, high = joined(of, 1, where), joined("student", 0, where)
        out[f"{prefix}fork_rate"] = fork.mean()
        out[f"{prefix}fork_share"] = (fork & high).sum() / high.sum()
    assert 0.1 < min(out.values()) and len({*out.values()}) > 3
    return out


def compare(row_tokens, mesh):
    found = rates(row_tokens, mesh)
    for name, value in wanted().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.heavy
@pytest.mark.parametrize("row_tokens", [0, 160])
def test_rates_of_an_update_are_those_of_whole_logits_in_float64(row_tokens):
    compare(row_tokens, (1, 1, 1))


@pytest.mark.heavy
def test_packed_rows_on_a_mesh_have_the_same_rates():
    other_process.on_eight_devices("import test_learner_forks as t; t.compare(160, (2, 2, 2))")
