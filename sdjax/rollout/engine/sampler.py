"""Prompts in, sampled tokens out: the interface of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdjax.config import Sampling
from sdjax.models.network import transformer
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import DecodeWeights
from sdjax.parallel import mesh as meshes
from sdjax.parallel.buckets import bucket
from sdjax.parallel.mesh import batch_shards
from sdjax.rollout.engine import draw, sizes, slots
from sdjax.rollout.engine.generation import Generation, Request
from sdjax.rollout.engine.sizes import Schedule
from sdjax.rollout.engine.slots import Programs
from sdjax.rollout.interface import Sampled, in_groups


@dataclass(frozen=True, kw_only=True)
class LocalSampler:
    """Draws completions. `weights` turns params into what decoding reads; call it once a step."""

    mesh: Mesh
    stop_ids: tuple[int, ...]
    pad_id: int
    schedule: Schedule
    weights: Callable[[nnx.State], DecodeWeights]
    """From params on the mesh of training to weights on that of rollouts."""
    weight_shardings: DecodeWeights
    programs: Programs
    fit: Callable[[int], int]
    """Returns how many slots of a cache capacity the devices hold; always the same number, so
    that a later step runs the programs of the first."""
    fitted: dict[int, int]
    """The numbers that `fit` has returned. They depend on the memory that was free: a run that is
    to repeat another's tokens is given that one's."""
    between: Callable[[], None]
    """Called before every loop of the devices; what it raises ends the sampling."""

    def sample(
        self,
        weights: DecodeWeights,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
    ) -> list[list[Sampled]]:
        """Returns `group_size` completions of each prompt, int32[P_i] each."""
        run = self.stream(weights, prompts, group_size=group_size, sampling=sampling, key=key)
        return in_groups(run, group_size)

    def stream(
        self,
        weights: DecodeWeights,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
        limits: np.ndarray | None = None,
    ) -> Generation:
        """Returns an iterator over (p * group_size + g, completion g of prompt p) as they end.

        Completion i draws with fold_in(key, i), so its tokens depend neither on its slot, nor on
        what else is sampled, nor on the devices (but for rounding: a GPU sums few rows in another
        order than many, which now and then decides between two tokens). `limits`, int32[B],
        stands for `sampling.max_completion_tokens` where completions differ in it.
        """
        completions = len(prompts) * group_size
        if limits is None:
            limits = np.full(completions, sampling.max_completion_tokens, np.int32)
        request = Request(
            prompts=prompts,
            limits=limits,
            group_size=group_size,
            how=draw.settings(sampling),
            key=key,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
        )
        shards = batch_shards(self.mesh)
        most = sampling.slots or self.fit(bucket(request.longest))
        return Generation(
            self.programs,
            weights,
            request,
            mesh=self.mesh,
            slots=min(most, -(-completions // shards) * shards),
            schedule=self.schedule,
            between=self.between,
        )


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

    `tensor` is config.Mesh.rollout_tensor.
    """
    schedule = schedule or Schedule()
    mesh = meshes.for_rollouts(mesh, tensor)
    shardings = transformer.decode_shardings(cfg, mesh)

    def weights(params: nnx.State) -> DecodeWeights:
        return transformer.decode_weights(nnx.merge(graphdef, params))

    fitted: dict[int, int] = {}

    def fit(capacity: int) -> int:
        if capacity not in fitted:
            free = sizes.free_bytes(mesh)
            fitted[capacity] = sizes.slots_that_fit(cfg, mesh, capacity, schedule, free)
        return fitted[capacity]

    return LocalSampler(
        mesh=mesh,
        stop_ids=stop_ids,
        pad_id=pad_id,
        schedule=schedule,
        weights=jax.jit(weights, out_shardings=shardings),
        weight_shardings=shardings,
        programs=slots.programs(cfg, mesh, stop_ids=stop_ids, pad_id=pad_id),
        fit=fit,
        fitted=fitted,
        between=between,
    )
