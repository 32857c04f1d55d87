"""Prompts in, sampled tokens out: the interface of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import mesh as meshes
from sdjax.parallel.mesh import batch_shards
from sdjax.parallel.rules import bucket
from sdjax.rollout.engine import slots
from sdjax.rollout.engine.generation import (
    EngineSetup,
    Generation,
    Schedule,
    free_bytes,
    slots_that_fit,
)
from sdjax.rollout.interface import SamplingRequest


@dataclass(frozen=True, kw_only=True)
class LocalSampler(EngineSetup):
    """Draws completions on the devices of this process, or of all processes together."""

    cfg: ModelConfig
    weights: Callable[[nnx.State], DecodeWeights]
    """Turns params on the training mesh into the weights that decoding reads on the rollout mesh;
    call it once per step."""
    weight_shardings: DecodeWeights
    fitted: dict[int, int]
    """The number of slots that fit for each cache capacity met so far. It stays the same, so that
    a later step runs the programs of the first. The numbers depend on the memory that was free: to
    repeat the tokens of another run, take its numbers."""

    def stream(self, weights: DecodeWeights, request: SamplingRequest) -> Generation:
        """Returns an iterator over (i, completion i of the request), each as soon as it ends.

        Completion i draws with fold_in(key, i). Its tokens do not depend on its slot, on the other
        completions, or on the devices. One exception is rounding: a GPU sums few rows in another
        order than many, which sometimes decides between two tokens.
        """
        size, sampling = request.group_size, request.sampling
        lengths = np.repeat([len(p) for p in request.prompts], size)
        limits = request.limits
        if limits is None:
            limits = np.full(len(lengths), sampling.max_completion_tokens, np.int32)
        longest = bucket(int(np.max(lengths + limits)))
        if not sampling.slots and longest not in self.fitted:
            free = free_bytes(self.mesh)
            fit = slots_that_fit(self.cfg, self.mesh, longest, self.schedule, free)
            self.fitted[longest] = fit * self.shards
        most = sampling.slots or self.fitted[longest]
        number = min(most, -(-len(lengths) // self.shards) * self.shards)
        return Generation(self, weights, request, limits, slots=number, longest=longest)


def make(
    graphdef: nnx.GraphDef,
    cfg: ModelConfig,
    mesh: Mesh,
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    schedule: Schedule | None = None,
    tensor: int = 0,
    between: Callable[[], None] = lambda: None,
) -> LocalSampler:
    """Returns the sampler of a model whose params are on a mesh.

    Args:
        graphdef: The model without its params.
        cfg: Its sizes.
        mesh: The mesh of training, whose devices the sampler uses.
        stop_ids: The tokens that end a completion.
        pad_id: The token behind the end of a prompt or completion.
        schedule: When the host looks at the slots; None for the defaults.
        tensor: config.Mesh.rollout_tensor, over how many devices to split a copy of the weights.
        between: Called before every loop of the devices; an exception in it ends the sampling.
    """
    mesh = meshes.for_rollouts(mesh, tensor)
    shardings = transformer.decode_shardings(cfg, mesh)

    def weights(params: nnx.State) -> DecodeWeights:
        return transformer.decode_weights(nnx.merge(graphdef, params))

    return LocalSampler(
        programs=slots.programs(cfg, mesh, stop_ids=stop_ids, pad_id=pad_id),
        mesh=mesh,
        shards=batch_shards(mesh),
        schedule=schedule or Schedule(),
        stop_ids=stop_ids,
        pad_id=pad_id,
        between=between,
        cfg=cfg,
        weights=jax.jit(weights, out_shardings=shardings),
        weight_shardings=shardings,
        fitted={},
    )
