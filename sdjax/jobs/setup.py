"""What jobs that run a model share: read and check everything, then load the weights."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from sdjax import config, storage
from sdjax.errors import UserError, WriteError, writing
from sdjax.metrics import to_json, write_text
from sdjax.models import attention, weights
from sdjax.models.config import ModelConfig
from sdjax.models.transformer import Transformer
from sdjax.parallel import hosts, rules
from sdjax.parallel import mesh as meshes
from sdjax.records import Example
from sdjax.rollout import remote
from sdjax.rollout import sampler as samplers
from sdjax.rollout.interface import Sampler
from sdjax.rollout.remote import RemoteSampler
from sdjax.tasks import Task
from sdjax.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Each job's first result; where one is, there is a run.
RESULTS = ("metrics.jsonl", "answers.jsonl", "bench.json", "collected.jsonl", "coverage.json")


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
class Workshop:
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
) -> Workshop:
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
        sampler = remote.make(
            server,
            stop_ids=tokenizer.stop_ids,
            vocab_size=cfg.vocab_size,
            write=partial(_write_for_server, cfg=cfg, source=folder, to=shared),
            between=between,
        )
    return Workshop(
        folder=folder,
        mesh=mesh,
        cfg=cfg,
        tokenizer=tokenizer,
        graphdef=graphdef,
        abstract=abstract,
        sampler=sampler,
        init_seed=source.init_seed,
    )


def export(shop: Workshop, params: nnx.State, out: Path) -> None:
    """Writes a run's model as a Hugging Face folder."""
    with writing(out / "model"):
        weights.export(params, shop.cfg, shop.folder, out / "model")
    note(f"model: {out / 'model'} (a Hugging Face folder)")


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


def note(text: str) -> None:
    """Prints a line from the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def note_skipped(task: Task, listed: int = 10) -> None:
    """Prints how many rows of the task's files are not used, and which, up to `listed`."""
    if task.skipped:
        note(f"{task.name}: {len(task.skipped)} rows skipped")
    for row in task.skipped[:listed]:
        note(f"  {row.file}:{row.row}: {row.reason}")


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


def claim(out: str, job: config.Job, *, resume: bool) -> Path:
    """Returns the run directory of a job that writes to a local one, as `claim_folder` does."""
    if storage.is_remote(out):
        raise UserError(f"out is {out!r}: this job writes to a local directory only; name one")
    return claim_folder(out, job, resume=resume).local


def claim_folder(
    out: str, job: config.Job, *, resume: bool, shared: bool = False
) -> storage.Folder:
    """Returns the run directory, made, with the resolved config in it.

    A directory that already holds a run is refused unless `resume`; one whose run ended before its
    first result is not. The config of a run that is gone on with stays (see rewrite_config).
    `shared`: every process writes or reads there, and must see what the first one wrote.
    """
    folder = storage.folder(out)
    if jax.process_index() == 0:
        _check_profile(getattr(job, "profile", None))
        _claim(folder, job, resume=resume)
    if jax.process_count() > 1:
        file = folder.local / "config.json"
        first = jax.process_index() == 0 and file.exists()
        text = hosts.of_first(file.read_text() if first else None)
        if shared and text is not None:
            _check_seen(folder.place / file.name, text)
    return folder


def _claim(folder: storage.Folder, job: config.Job, *, resume: bool) -> None:
    out = str(folder.place)
    try:
        held = folder.holds(RESULTS)
        if held and not resume:
            resume_or = "pass --resume or " if hasattr(job, "resume") else "choose "
            raise UserError(f"out is {out!r}: it holds a run; {resume_or}another --out")
        folder.local.mkdir(parents=True, exist_ok=True)
        if resume:
            folder.pull()
        if not held:
            rewrite_config(folder, job)
    except WriteError as e:
        raise UserError(f"out is {out!r}: {e}; name another directory") from e
    except OSError as e:
        raise UserError(
            f"out is {out!r}: cannot be written ({e.strerror}); name another directory"
        ) from e


def rewrite_config(folder: storage.Folder, job: config.Job) -> None:
    """Writes the resolved config.

    To be called once a run that is gone on with has begun: one that cannot stays as it was.
    """
    if jax.process_index() == 0:
        text = json.dumps(config.to_public(job), indent=2) + "\n"
        write_text(folder.local / "config.json", text)
        folder.push()


@contextmanager
def pushed(folder: storage.Folder) -> Iterator[None]:
    """Copies a run's files to their place at the end of the block, also if it fails."""
    primary = jax.process_index() == 0
    try:
        yield
    except BaseException:
        with suppress(UserError):
            if primary:
                folder.push()
        raise
    if primary:
        folder.push()
    folder.close()


def _check_seen(file: Any, text: str, patience_s: float = 10.0) -> None:
    """Raises UserError where this process does not see what the first one wrote."""
    until = time.monotonic() + patience_s  # a network file system may show it late
    while not (file.exists() and file.read_text() == text):
        if time.monotonic() > until:
            raise UserError(
                f"out is {str(file.parent)!r}: what process 0 writes there does not appear here; "
                "name a directory that all hosts share"
            )
        time.sleep(0.2)


def check_same(cfg: config.Job) -> None:
    """Raises UserError where the job's directory was made with another config."""
    out = cfg.out  # type: ignore[union-attr]
    file = storage.place(out) / "config.json"
    if not file.exists():
        return
    try:
        made = config.flat(json.loads(file.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not JSON ({error}); choose another --out") from None
    now = config.flat(config.to_public(cfg))
    for name in {**made, **now}:
        # Of a server only whether there is one: how it is asked changes no answer.
        # Words are counted in the answers, whatever these were made with.
        if name in ("out", "resume", "profile", "lexicon") or (
            name.startswith("server.") and name != "server.url"
        ):
            continue
        if made.get(name) != now.get(name):
            raise UserError(
                f"{name} is {now.get(name)!r}: {out} was made with "
                f"{made.get(name)!r}; set it back or choose another --out"
            )


def _check_profile(folder: str | None) -> None:
    """Raises UserError where no trace could be written: it is, only after the work it is of."""
    if folder is None:
        return
    if storage.is_remote(folder):
        raise UserError(f"profile is {folder!r}: must be a local directory")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise UserError(
            f"profile is {folder!r}: cannot be written ({e.strerror}); name another directory"
        ) from e


def check_same_examples(name: str, examples: Sequence[Example]) -> None:
    """Raises UserError where processes have read different examples; looks at up to 1000."""
    looked_at = [examples[i] for i in range(0, len(examples), max(len(examples) // 1000, 1))]
    texts = [to_json(asdict(example)) for example in looked_at]
    hosts.check_same(
        f"{name}: its examples", [len(examples), *texts], "give every host the same files"
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
