"""A model on a mesh: checks config, mesh and tokenizer first, and loads the weights later."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from sdjax import config
from sdjax.errors import UserError, require_package
from sdjax.io import lease, storage
from sdjax.models.files import peft, resolve, weights
from sdjax.models.network import attention
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import hosts, rules
from sdjax.parallel import mesh as meshes
from sdjax.rollout.engine import sampler as samplers
from sdjax.rollout.interface import Sampler
from sdjax.tokenizer import Tokenizer
from sdjax.training import teacher_model
from sdjax.training.teacher_model import TeacherModel

log = logging.getLogger(__name__)

J = TypeVar("J", config.Train, config.SFT, config.Evaluate, config.Study)


def keep_programs() -> None:
    """Stores compiled programs in the user's cache, so that later processes find them.

    A place that JAX was given (JAX_COMPILATION_CACHE_DIR) stays. Where the cache cannot be
    written, a warning says so. Call this before anything compiles.
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
    """A checked model on a mesh, with its tokenizer and sampler; `load` reads the weights."""

    folder: Path
    mesh: jax.sharding.Mesh
    cfg: ModelConfig
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    abstract: nnx.State
    sampler: Sampler
    init_seed: int | None
    """The seed of random weights; None: the folder holds the weights."""
    own_template: bool
    """Whether the config, and not the model, names the chat template."""
    between: Callable[[], None]
    """Called often while sampling and exporting. What it raises ends that."""
    teachers: Mapping[str, TeacherModel] = field(default_factory=dict)
    """The models of a teacher of kind "model", by the value of its route; {}: there is none."""

    def dated(self, job: J) -> J:
        """Returns a job's config with the day that the chat template reads, if it reads one."""
        day = self.tokenizer.date
        return job if day is None else replace(job, model=replace(job.model, date=day))

    def load(self) -> nnx.State:
        """Returns the stored or randomly drawn params; each device holds its part."""
        shardings = rules.param_shardings(self.abstract, self.mesh)
        if self.init_seed is not None:
            return weights.draw(self.cfg, self.init_seed, shardings)
        return weights.load(self.folder, self.cfg, shardings)

    def stored_weights(self) -> Any:
        """Returns the sampler's weights of the stored model; None for a server, which loads it."""
        if not isinstance(self.sampler, samplers.LocalSampler):
            return None
        return self.sampler.weights(self.load())

    def export(self, params: nnx.State, out: Path, dtype: str = "source") -> None:
        """Writes params as a Hugging Face folder, with the chat template in use.

        `dtype` is as in config.Checkpoint.export_dtype.
        """
        if dtype == "source":
            dtype = weights.stored_dtype(self.folder)
        finish = self.tokenizer.save_template if self.own_template else lambda folder: None
        between, source = self.between, self.folder
        weights.export(params, self.cfg, source, out, dtype=dtype, between=between, finish=finish)
        hosts.note(f"model: {out} (a Hugging Face folder, {dtype})")

    def export_adapters(
        self, params: nnx.State, source: config.Model, out: Path, dtype: str = "source"
    ) -> None:
        """Writes the adapters as a folder for PEFT; does nothing for a model without adapters.

        `source` names the model that the adapters belong to.
        """
        if self.cfg.lora is None:
            return
        dtype = "float32" if dtype == "source" else dtype
        local = source.path.startswith(resolve.PACKAGE) or Path(source.path).expanduser().exists()
        base = str(self.folder.resolve()) if local else source.path
        revision = None if local else source.revision
        peft.export(params, self.cfg, base, self.folder, out, revision=revision, dtype=dtype)
        gguf = "; PEFT does not load their base, a GGUF file" if base.endswith(".gguf") else ""
        hosts.note(f"adapters: {out} (for PEFT, {dtype}{gguf})")


def open_model(
    source: config.Model,
    mesh_cfg: config.Mesh,
    server: config.Server | None = None,
    out: str = "",
    lora: config.Lora | None = None,
    between: Callable[[], None] = lambda: None,
    check: Callable[[ModelConfig, jax.sharding.Mesh], None] = lambda cfg, mesh: None,
) -> LoadedModel:
    """Returns a model after its checks; reads configs and the tokenizer, but no weights.

    Args:
        source: Which model, in which types.
        mesh_cfg: The mesh of devices.
        server: Samples in place of this process, if it has a url.
        out: The run directory; the server's weights go below it unless `server` names a folder.
        lora: Adds adapters, if its rank is not 0.
        between: Called often while sampling and exporting. What it raises ends that.
        check: Called before the tokenizer is read, which takes seconds.
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
        context=source.context,
    )
    check_divisible(cfg, mesh)
    check_divisible(cfg, meshes.for_rollouts(mesh, mesh_cfg.rollout_tensor), "mesh.rollout_tensor")
    _check_attention(cfg)
    check(cfg, mesh)
    if source.init_seed is None:
        weights.check(folder, cfg)
    if server is not None and server.url is not None:
        _reach(server, between)
    tokenizer = _tokenizer(source, cfg.vocab_size)
    transformer = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(transformer)
    sampler: Sampler
    if server is not None and server.url is not None:
        sampler = _server_sampler(server, out, folder, cfg, tokenizer, between)
    else:
        sampler = samplers.make(
            graphdef,
            cfg,
            mesh,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            tensor=mesh_cfg.rollout_tensor,
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
        own_template=source.chat_template is not None or source.chat_template_name is not None,
        between=between,
    )


def with_teachers(model: LoadedModel, cfg: config.Train) -> LoadedModel:
    """Returns a model with those that teach it, if the training has others; reads no weights.

    Raises UserError if one does not fit the student or the mesh.
    """
    teachers = teacher_model.open_teachers(cfg, model.cfg, model.tokenizer)
    for teacher in teachers.values():
        check_divisible(teacher.cfg, model.mesh, whose="the teacher's")
        _check_attention(teacher.cfg)
    return replace(model, teachers=teachers)


def _tokenizer(source: config.Model, rows: int) -> Tokenizer:
    """Returns the tokenizer of a model whose embedding has that many rows."""
    tokenizer = Tokenizer.load(
        source.path,
        source.revision,
        chat_template=source.chat_template,
        chat_template_name=source.chat_template_name,
        date=source.date,
    )
    # The hosts' clocks may stand on two days.
    return replace(tokenizer, date=hosts.of_first(tokenizer.date)).for_rows(rows)


def kept_date(job: J) -> J:
    """Returns the config of a job that resumes with the day that its run began with.

    Call it before the config is compared with the run's, and `LoadedModel.dated` once the model is
    open.
    """
    if not job.resume or job.model.date is not None:
        return job
    file = storage.place(job.out) / "config.json"
    day = None
    if jax.process_index() == 0 and file.exists():
        with suppress(ValueError, AttributeError):  # run_dir reports a file that is not JSON
            day = json.loads(file.read_text()).get("model", {}).get("date")
    return replace(job, model=replace(job.model, date=hosts.of_first(day)))


def _reach(server: config.Server, between: Callable[[], None]) -> None:
    """Raises UserError if a server does not answer. That it answers well is seen later."""
    require_package("aiohttp", "server", "server.url")
    from sdjax.rollout.server import client  # only runs with a server need an HTTP library

    client.reach(server, between)


def _server_sampler(
    server: config.Server,
    out: str,
    folder: Path,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    between: Callable[[], None],
) -> Sampler:
    """Returns a sampler that asks a server; see `open_model` for the arguments.

    `folder` holds the model that the run starts from.
    """
    if server.folder is None and storage.is_remote(out):
        raise UserError("server.folder is None: out is no local directory; name one for both")
    from sdjax.rollout.server import client

    shared = Path(server.folder or Path(out) / "server").resolve()
    return client.make(
        server,
        stop_ids=tokenizer.stop_ids,
        vocab_size=cfg.vocab_size,
        write=partial(_write_for_server, cfg=cfg, source=folder, to=shared),
        between=between,
    )


def _check_attention(cfg: ModelConfig) -> None:
    """Raises UserError where these devices cannot run the attention that the config names."""
    needed = {"cudnn": "gpu", "splash": "tpu"}.get(cfg.attention)
    if needed is not None and jax.default_backend() != needed:
        raise UserError(
            f"model.attention is {cfg.attention!r}: needs a {needed.upper()}, and this is a "
            f"{jax.default_backend().upper()}; say auto"
        )
    attention.choose(cfg.attention, jax.numpy.dtype(cfg.compute_dtype), cfg.head_dim)


def _write_for_server(params: nnx.State, *, cfg: ModelConfig, source: Path, to: Path) -> str:
    """Writes params in the type that the trainer computes in, and returns the folder."""
    lease.make_folder(to.parent)
    weights.export(params, cfg, source, to, dtype=cfg.compute_dtype)
    return str(to)


def check_server(sampler: Sampler, sampling: config.Sampling | None) -> None:
    """Raises UserError where a server samples and does not answer as it must.

    `sampling` is that of training; None: nothing reads the log-probabilities.
    """
    if isinstance(sampler, samplers.LocalSampler):
        return
    from sdjax.rollout.server.client import RemoteSampler

    assert isinstance(sampler, RemoteSampler)
    sampler.check(sampling)


def check_shards(name: str, size: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the shards of the mesh do not divide a batch."""
    shards = meshes.batch_shards(mesh)
    if size % shards:
        used = (axis for axis in rules.BATCH if axis != "expert" or mesh.shape[axis] > 1)
        axes = " x ".join(f"mesh.{axis}" for axis in used)
        raise UserError(f"{name} is {size}: must be a multiple of {axes} = {shards}")


def check_context(cfg: ModelConfig, name: str, context: int, completion: int) -> None:
    """Raises UserError where a context and its completion exceed the model's positions."""
    if context + completion > cfg.max_positions:
        raise UserError(
            f"{name} is {context}: with {completion} completion tokens it exceeds the model's "
            f"context of {cfg.max_positions}; lower either"
        )


def check_vocabulary(cfg: ModelConfig, name: str, tokens: int) -> None:
    """Raises UserError where a number of likeliest tokens exceeds the vocabulary."""
    if tokens > cfg.vocab_size:
        raise UserError(
            f"{name} is {tokens}: the model's vocabulary has {cfg.vocab_size} tokens; lower it"
        )


def check_divisible(
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    tensor: str = "mesh.tensor",
    whose: str = "the model's",
) -> None:
    """Raises UserError where the mesh does not divide the model's sizes.

    `tensor` is the config field that sets the size of the mesh's tensor axis. `whose` says which
    model it is.
    """
    held = mesh.shape["expert"] * mesh.shape["fsdp"]
    if cfg.experts is not None and cfg.experts.count % held:
        raise UserError(
            f"mesh.expert x mesh.fsdp is {held}: must divide {whose} number of experts, "
            f"{cfg.experts.count}"
        )
    if cfg.experts is None and mesh.shape["expert"] > 1:
        raise UserError(
            f"mesh.expert is {mesh.shape['expert']}: {whose} MLPs have no experts: say 1, and give "
            "the devices to mesh.fsdp"
        )
    for name, size, axis in (
        ("attention heads", cfg.num_heads, "tensor"),
        ("key-value heads", cfg.num_kv_heads, "tensor"),
        ("MLP size", cfg.inner, "tensor"),
        ("vocabulary", cfg.vocab_size, "tensor"),
        ("hidden size", cfg.embed, "fsdp"),
    ):
        if size % mesh.shape[axis]:
            raise UserError(
                f"{tensor if axis == 'tensor' else 'mesh.fsdp'} is {mesh.shape[axis]}: must divide "
                f"{whose} {name}, {size}"
            )
