"""A tiny random model and random graded groups, for tests of the learner and the sampler."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.learner import adamw, objective, state, update
from sdjax.learner import batch as batches
from sdjax.learner.objective import step_metrics as of_step  # noqa: F401
from sdjax.models.network.model_config import LayerKind, ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import mesh as meshes
from sdjax.parallel import rules
from sdjax.records import Completion, Example, Grade, Group, TeacherPrompt
from sdjax.tasks.largest_number import LargestNumber
from sdjax.teacher import contexts
from sdjax.training import teacher_model

CFG = ModelConfig(
    family="llama",
    vocab_size=256,
    num_layers=2,
    embed=32,
    mlp=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=512,
    layers=(LayerKind(),) * 2,
    tie_embeddings=True,
    compute_dtype="float32",
)
# Adam's first update is g / (|g| + eps): with a huge eps and rate it is the gradient itself.
PLAIN = {"eps": 1e6, "lr": 1e9, "weight_decay": 0.0, "clip_norm": 1e9}


def train_config(**sections) -> config.Train:
    """Returns a config of 4 prompts x 4 completions, with sections replaced field by field."""
    base = config.Train(
        out="unused",
        task=LargestNumber(),
        rollout=config.Rollout(prompts_per_step=4, group_size=4, temperature=0.7),
        optim=config.Optim(microbatch=8, warmup_steps=0, lr=1e-3),
        loss=config.Loss(chunk_tokens=64),
    )
    changed = {k: replace(getattr(base, k), **v) for k, v in sections.items()}
    return replace(base, **changed)


def make_mesh(data=1, fsdp=1, tensor=1):
    """Returns a mesh over the first data x fsdp x tensor devices."""
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh(
        (data, 1, fsdp, tensor),
        meshes.NAMES,
        axis_types=(jax.sharding.AxisType.Auto,) * 4,
        devices=devices,
    )


def groups(seed=0, prompts=4, size=4):
    """Returns random groups of ragged lengths, some with and some without a correct member."""
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return rng.integers(3, 256, rng.integers(low, high)).astype(np.int32)

    out = []
    for p in range(prompts):
        completions, grades = [], []
        for g in range(size):
            t = tokens(1, 30)
            logprobs = rng.uniform(-7, -4, len(t)).astype(np.float32)
            completions.append(Completion(tokens=t, logprobs=logprobs, text="", finish="stop"))
            correct = p > 0 and (g + p) % 3 == 0
            grades.append(Grade(reward=float(correct), correct=correct))
        columns = {"subject": "ab"[p % 2]}
        example = Example(id=str(p), messages=(), answer="", task="random", columns=columns)
        out.append(
            Group(
                example=example,
                prompt=tokens(2, 20),
                completions=tuple(completions),
                grades=tuple(grades),
            )
        )
    return out


def reprompts(of_groups, seed=1):
    """Returns random reprompts; the completions of the first group have none."""
    rng = np.random.default_rng(seed)
    return [
        [
            TeacherPrompt(
                tokens=rng.integers(3, 256, rng.integers(20, 60)).astype(np.int32),
                demonstration=0 if p else None,
                feedback_used=False,
            )
            for _ in group.completions
        ]
        for p, group in enumerate(of_groups)
    ]


def pack(cfg, of_groups=None, of_reprompts=None):
    """Returns the batch of these groups and reprompts (or of the random ones)."""
    of_groups = groups() if of_groups is None else of_groups
    of_reprompts = reprompts(of_groups) if of_reprompts is None else of_reprompts
    rng = np.random.default_rng(2)
    read = {name: of_reprompts for name in contexts.used(cfg)}
    marked = [rng.random(len(c.tokens)) < 0.2 for g in of_groups for c in g.completions]
    return packed(cfg, of_groups, read, marked)


def packed(cfg, of_groups, contexts, epistemic):
    """Returns the batch of groups with reprompts by context, and these tokens marked epistemic."""
    samples = batches.samples_of(of_groups, contexts, cfg.loss, cfg.policy, 32, cfg.teacher)
    return batches.pack(of_groups, contexts, samples, epistemic, cfg.optim, 0)


def by_completion(batch, values):
    """Returns a list of what values [M, R, C] hold of each completion; None without a row."""
    ends = batches.places(batch)[:, None] + np.stack([0 * (n := batch.samples.length), n], 1)
    return [None if a < 0 else values.reshape(-1)[a:b] for a, b in ends.tolist()]


def random_params(abstract, seed=0):
    """Returns params drawn by numpy: compiling a random initialisation takes longer than a test."""
    rng = np.random.default_rng(seed)

    def one(path, x):
        mean, std = (1.0, 0.1) if "norm" in jax.tree_util.keystr(path) else (0.0, 0.2)
        return rng.normal(mean, std, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, abstract)


@functools.cache
def programs(aim, optim, remat, mesh, model_cfg, teachers=()):
    """Returns what a learner compiles, so that learners of one kind compile it once."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(model_cfg, rngs=nnx.Rngs(0))))
    tx = adamw.make(optim)
    others = {name: teacher_model.of_config(cfg).other for name, cfg in teachers}
    shardings = state.shardings(abstract, tx, aim.teacher, mesh, others)
    return SimpleNamespace(
        graphdef=graphdef,
        abstract=abstract,
        shardings=shardings,
        others=others,
        objective=aim,
        step=update.make_train_step(graphdef, aim, optim, shardings, remat),
        score=update.make_score(graphdef, aim, mesh),
        after=update.make_after_step(aim.teacher, shardings),
        initial=state.initialiser(tx, aim.teacher, shardings),
    )


class Learner:
    """A tiny model with its state and jitted steps on a mesh, and models that teach, if any."""

    def __init__(self, cfg, mesh, model_cfg=CFG, teachers=()):
        self.cfg, self.mesh = cfg, mesh
        aim = objective.Objective.of(cfg)
        made = programs(aim, cfg.optim, cfg.model.remat, mesh, model_cfg, teachers)
        vars(self).update(vars(made))
        params = jax.device_put(
            random_params(self.abstract), rules.param_shardings(self.abstract, mesh)
        )
        with jax.set_mesh(mesh):
            self.state = self.initial(params)
        if self.others:
            drawn = {
                name: replace(other, params=random_params(other.params, seed))
                for seed, (name, other) in enumerate(self.others.items(), 1)
            }
            drawn = jax.device_put(drawn, self.shardings.teacher_params)
            self.state = replace(self.state, teacher_params=drawn)

    def update(self, batch):
        """Returns the metrics of one update on a host batch."""
        with jax.set_mesh(self.mesh):
            placed = jax.device_put(batch, update.batch_shardings(batch, self.mesh))
            self.state, metrics, record = self.step(self.state, placed)
        self.record = jax.device_get(record)
        return {k: float(v) for k, v in jax.device_get(metrics).items()}

    def params(self):
        """Returns the parameters on the host."""
        return jax.device_get(self.state.params)
