"""What jobs that run a model share: read and check everything, then load the weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from sdjax import config
from sdjax.errors import UserError, writing
from sdjax.io import storage
from sdjax.models.files import weights
from sdjax.models.network import attention
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import hosts, rules
from sdjax.parallel import mesh as meshes
from sdjax.rollout.engine import sampler as samplers
from sdjax.rollout.interface import Sampler
from sdjax.rollout.server import client
from sdjax.rollout.server.client import RemoteSampler
from sdjax.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def keep_programs() -> None:
    """Lets compiled programs outlive the process, in the user's cache.

    Where JAX has been given a place (JAX_COMPILATION_CACHE_DIR), that one stays. A directory that
    cannot be written costs a warning. To be called before anything compiles.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "sdjax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        log.warning("programs are compiled anew in every run: %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on a mesh, not yet loaded, with what is needed to load and sample it."""

    folder: Path
    mesh: jax.sharding.Mesh
    cfg: ModelConfig
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    abstract: nnx.State
    sampler: Sampler
    init_seed: int | None

    def load(self) -> nnx.State:
        """Returns the params, each device holding its part: stored, or drawn."""
        shardings = rules.param_shardings(self.abstract, self.mesh)
        if self.init_seed is not None:
            return weights.draw(self.cfg, self.init_seed, shardings)
        return weights.load(self.folder, self.cfg, shardings)

    def stored_weights(self) -> Any:
        """Returns what the sampler reads of the model as stored; a server has loaded it itself."""
        if isinstance(self.sampler, RemoteSampler):
            return None
        return self.sampler.weights(self.load())


def workshop(
    source: config.Model,
    mesh_cfg: config.Mesh,
    server: config.Server | None = None,
    out: str = "",
    lora: config.Lora | None = None,
    between: Callable[[], None] = lambda: None,
) -> LoadedModel:
    """Returns the checked parts of a job; reads configs and the tokenizer, but no weights.

    With the url of a server in `server` that server samples; weights for it go below `out`.
    `lora` with a rank adds adapters. `between` is called often while sampling; what it raises ends
    it.
    """
    keep_programs()
    mesh = meshes.make(mesh_cfg)
    folder = weights.resolve(source.path, source.revision)
    cfg = weights.read_config(
        folder,
        compute_dtype=source.compute_dtype,
        remat=source.remat,
        attention=source.attention,
        lora=lora if lora is not None and lora.rank else None,
    )
    check_divisible(cfg, mesh)
    check_divisible(cfg, meshes.for_rollouts(mesh, mesh_cfg.rollout_tensor), "mesh.rollout_tensor")
    _check_attention(cfg)
    if source.init_seed is None:
        weights.check(folder, cfg)
    tokenizer = Tokenizer.load(source.path, source.revision)
    model = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    sampler: Sampler
    if server is None or server.url is None:
        sampler = samplers.make(
            graphdef,
            cfg,
            mesh,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            tensor=mesh_cfg.rollout_tensor,
            between=between,
        )
    else:
        if server.folder is None and storage.is_remote(out):
            raise UserError("server.folder is None: out is no local directory; name one for both")
        shared = Path(server.folder or Path(out) / "server").resolve()
        sampler = client.make(
            server,
            stop_ids=tokenizer.stop_ids,
            vocab_size=cfg.vocab_size,
            write=partial(_write_for_server, cfg=cfg, source=folder, to=shared),
            between=between,
        )
    return LoadedModel(
        folder=folder,
        mesh=mesh,
        cfg=cfg,
        tokenizer=tokenizer,
        graphdef=graphdef,
        abstract=abstract,
        sampler=sampler,
        init_seed=source.init_seed,
    )


def export(shop: LoadedModel, params: nnx.State, out: Path) -> None:
    """Writes a run's model as a Hugging Face folder."""
    with writing(out / "model"):
        weights.export(params, shop.cfg, shop.folder, out / "model")
    hosts.note(f"model: {out / 'model'} (a Hugging Face folder)")


def _check_attention(cfg: ModelConfig) -> None:
    """Raises UserError where the asked-for attention does not run on these devices."""
    needed = {"cudnn": "gpu", "splash": "tpu"}.get(cfg.attention)
    if needed is not None and jax.default_backend() != needed:
        raise UserError(
            f"model.attention is {cfg.attention!r}: needs a {needed.upper()}, and this is a "
            f"{jax.default_backend().upper()}; say auto"
        )
    attention.choose(cfg.attention, jax.numpy.dtype(cfg.compute_dtype), cfg.head_dim)


def _write_for_server(params: nnx.State, *, cfg: ModelConfig, source: Path, to: Path) -> str:
    """Writes params in the type that the trainer computes in, and returns the folder."""
    weights.export(params, cfg, source, to, dtype=cfg.compute_dtype)
    return str(to)


def check_server(sampler: Sampler, sampling: config.Sampling | None) -> None:
    """Raises UserError where a server samples that does not answer as it must.

    `sampling` is that of training; None: the log-probabilities are of no use.
    """
    if isinstance(sampler, RemoteSampler):
        sampler.check(sampling)


def check_shards(name: str, size: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where a batch does not divide by the shards of the mesh."""
    shards = meshes.batch_shards(mesh)
    if size % shards:
        raise UserError(f"{name} is {size}: must be a multiple of mesh.data x mesh.fsdp = {shards}")


def check_context(cfg: ModelConfig, name: str, context: int, completion: int) -> None:
    """Raises UserError where a context and its completion exceed the model's positions."""
    if context + completion > cfg.max_positions:
        raise UserError(
            f"{name} is {context}: with {completion} completion tokens it exceeds the model's "
            f"context of {cfg.max_positions}; lower either"
        )


def check_divisible(cfg: ModelConfig, mesh: jax.sharding.Mesh, tensor: str = "mesh.tensor") -> None:
    """Raises UserError where the mesh does not divide the model's sizes.

    `tensor` is the field that says how large its tensor axis is.
    """
    for name, size, axis in (
        ("attention heads", cfg.num_heads, "tensor"),
        ("key-value heads", cfg.num_kv_heads, "tensor"),
        ("MLP size", cfg.mlp, "tensor"),
        ("vocabulary", cfg.vocab_size, "tensor"),
        ("hidden size", cfg.embed, "fsdp"),
    ):
        if size % mesh.shape[axis]:
            raise UserError(
                f"{tensor if axis == 'tensor' else 'mesh.fsdp'} is {mesh.shape[axis]}: must divide "
                f"the model's {name}, {size}"
            )
