"""Every config in the repository loads, names its command, and its train step traces."""

import contextlib
import dataclasses
import functools
import math

import jax
import learning
import marks
import pytest
from flax import nnx
from paths import ROOT

from sdjax.config import Train, packaged
from sdjax.config.load import load
from sdjax.errors import UserError
from sdjax.learner import adamw, state, update
from sdjax.learner.objective import Objective
from sdjax.models.files import published, weights
from sdjax.models.network.transformer import Transformer
from sdjax.training import teacher_model

FAMILY = {"Qwen/Qwen3-8B": "qwen3", "Qwen/Qwen3-1.7B": "qwen3"}
"""Models that differ only in sizes, and in the head, which only the smaller model ties."""
CONFIGS = [f"configs/{name}.py" for name in sorted(packaged.names())]

# Counts of the publishers; a tied head is not counted, although the files hold a copy.
PARAMETERS = {
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "allenai/Olmo-3-7B-Instruct": 7_298_011_136,
}


@functools.cache
def loaded(name):
    return load(ROOT / name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_loads_and_names_its_command(name):
    loaded(name)
    assert f"python -m sdjax.main --config {name}" in (ROOT / name).read_text()


def test_no_two_configs_write_to_one_folder():
    outs = [loaded(name).out for name in CONFIGS if "/data/" not in name]
    assert sorted(set(outs)) == sorted(outs)


@pytest.mark.parametrize("name", published.names())
def test_a_published_shape_has_the_published_number_of_parameters(name):
    leaves = jax.tree.leaves(weights.abstract_params(published.read_config(name)))
    assert sum(math.prod(x.shape) for x in leaves) == PARAMETERS[name]


def trainings():
    """Yields (name, config) of every training that loads; another test checks that all load."""
    for name in CONFIGS:
        with contextlib.suppress(UserError):
            if isinstance(cfg := loaded(name), Train):
                yield name, cfg


def what_traces():
    """Returns one config of each group whose train steps differ only in sizes."""
    kinds = {}
    for name, cfg in trainings():
        model = dataclasses.replace(cfg.model, path=FAMILY.get(cfg.model.path, cfg.model.path))
        optim = dataclasses.replace(cfg.optim, lr=0.0, microbatch=1)
        alike = (model, cfg.loss, cfg.policy, cfg.teacher, optim, cfg.rollout.temperature)
        kinds.setdefault(alike, name)
    return list(kinds.values())


@pytest.mark.parametrize("name", marks.heavy_but(what_traces()[::12], what_traces()))
def test_the_train_step_of_a_config_traces(name):
    cfg = loaded(name)
    runtime = {k: getattr(cfg.model, k) for k in ("compute_dtype", "remat", "attention")}
    if cfg.model.path in published.names():
        model_cfg = published.read_config(cfg.model.path, **runtime)
    else:
        model_cfg = weights.read_config(weights.resolve(cfg.model.path), **runtime)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(model_cfg, rngs=nnx.Rngs(0))))
    tx, mesh, others = adamw.make(cfg.optim), learning.make_mesh(), {}
    if cfg.teacher.kind == "model":
        teacher = published.read_config(cfg.teacher.path, **runtime)
        others = {"": teacher_model.of_config(teacher).other}
    shardings = state.shardings(abstract, tx, cfg.teacher, mesh, others)
    before = jax.eval_shape(state.initialiser(tx, cfg.teacher, shardings), abstract)
    before = dataclasses.replace(before, teacher_params=others) if others else before
    batch = learning.pack(cfg)
    if cfg.optim.minibatches > 1:
        score = update.make_score(graphdef, Objective.of(cfg), mesh)
        old = jax.eval_shape(score, before.params, batch)
        batch = dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, old_logprobs=old))
    after, metrics, record = jax.eval_shape(
        update.make_train_step(graphdef, Objective.of(cfg), cfg.optim, shardings, cfg.model.remat),
        before,
        batch,
    )
    assert jax.tree.map(shape_of, after) == jax.tree.map(shape_of, before)
    assert (
        metrics["loss/total"].shape == () and record.student_logprob.shape == batch.rows.token.shape
    )
    moved = jax.eval_shape(update.make_after_step(cfg.teacher, shardings), after)
    assert jax.tree.map(shape_of, moved) == jax.tree.map(shape_of, before)


def shape_of(x):
    return x.shape, x.dtype
