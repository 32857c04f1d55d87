"""The model that a bench measures: its sizes, its parameters on a mesh, its sampler."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.bench import timing
from sdjax.bench.timing import TimedRun, Timing
from sdjax.logs import profiler
from sdjax.models.families import registry
from sdjax.models.files import weights
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import rules
from sdjax.rollout.engine import sampler as samplers
from sdjax.rollout.engine.sampler import LocalSampler


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on a mesh, not loaded yet, and the bench's config."""

    cfg: config.Bench
    model: ModelConfig
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    abstract: nnx.State
    sampler: LocalSampler

    def params(self) -> nnx.State:
        """Returns the params, drawn or loaded; each device holds its part."""
        shardings = rules.param_shardings(self.abstract, self.mesh)
        if self.cfg.weights == "model":
            source = self.cfg.model
            return weights.load(
                weights.resolve(source.path, source.revision), self.model, shardings
            )
        return weights.draw(self.model, self.cfg.seed, shardings)

    def rng(self) -> np.random.Generator:
        """Returns a new random generator of tokens and lengths, seeded by the config."""
        return np.random.default_rng(self.cfg.seed)

    def timings(self, name: str, run: TimedRun) -> dict[str, Timing]:
        """Returns the timings of a run's parts; with cfg.profile, traces one more run as `name`."""
        parts = timing.repeated(run, self.cfg.repeats)
        if self.cfg.profile is not None:
            with profiler.trace(Path(self.cfg.profile) / name):
                run(self.cfg.repeats + 1)
        return parts


def model_config(cfg: config.Bench) -> ModelConfig:
    """Returns the sizes of the model; reads no weights."""
    how = cfg.model
    runtime = {k: getattr(how, k) for k in ("compute_dtype", "remat", "attention")}
    runtime["lora"] = cfg.lora if cfg.lora.rank else None
    if cfg.weights == "model":
        return weights.read_config(weights.resolve(how.path, how.revision), **runtime)
    return registry.from_hf(asdict(cfg.shape), **runtime)


def make(cfg: config.Bench, model: ModelConfig, mesh: jax.sharding.Mesh) -> Subject:
    """Returns the model on the mesh; its sampler has no stop tokens."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))
    return Subject(
        cfg=cfg,
        model=model,
        mesh=mesh,
        graphdef=graphdef,
        abstract=abstract,
        sampler=samplers.make(
            graphdef, model, mesh, stop_ids=(), pad_id=0, tensor=cfg.mesh.rollout_tensor
        ),
    )
