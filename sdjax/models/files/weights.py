"""Reads a model's config and loads its parameters onto the mesh.

It also has the names of resolve.py and hf_export.py that find and write models.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from sdjax.errors import UserError
from sdjax.io import progress
from sdjax.models.families import registry
from sdjax.models.files import gguf, shards, tensors, text_part
from sdjax.models.files.hf_export import export
from sdjax.models.files.resolve import resolve
from sdjax.models.network import lora
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import hosts

__all__ = ["draw", "export", "load", "read_config", "resolve"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 4096  # of the vocabulary, compared at once
LISTED = 8  # tensors that a message names

log = logging.getLogger(__name__)


class WeightSource(Protocol):
    """Tensors under their Hugging Face names, read a part at a time."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""

    def read(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        """Returns some rows of a tensor, and some columns if it is a matrix."""


def read_config(path: Path, **runtime: Any) -> ModelConfig:
    """Returns the model of a folder or GGUF file.

    It reads no weights, with one exception. A head beside a config of a tied model is compared with
    the embedding. If they differ, the model is not tied, as in transformers 5.

    `runtime`: compute_dtype, remat, attention, lora, context.
    """
    fields = hf_config(path)
    try:
        cfg = registry.from_hf(fields, **runtime)
    except UserError as error:
        raise _at(path, error) from None
    if not _own_head(path, cfg):
        return cfg
    log.warning("%s: %s differs from the embedding, so the model is not tied", path, HEAD)
    return replace(cfg, tie_embeddings=False)


def _at(path: Path, error: UserError) -> UserError:
    """Returns an error of config.json with the file's whole path, or that of a GGUF file."""
    file = path if path.suffix == ".gguf" else path / "config.json"
    return UserError(f"{file}: {str(error).removeprefix('config.json: ')}")


def _own_head(path: Path, cfg: ModelConfig) -> bool:
    """Returns whether the files hold a head that differs from the embedding of a tied model.

    A GGUF file says that a model is tied by leaving out the head.
    """
    if not cfg.tie_embeddings or path.suffix == ".gguf":
        return False
    try:
        source = _source(path)
    except UserError:  # `check` and `load` raise it, where the weights are needed
        return False
    if not {EMBEDDING, HEAD} <= source.shapes.keys():
        return False
    if source.shapes[EMBEDDING] != source.shapes[HEAD]:
        return True
    for start in range(0, source.shapes[HEAD][0], ROWS):
        rows = slice(start, min(start + ROWS, source.shapes[HEAD][0]))
        one, other = (source.read(name, rows, None) for name in (EMBEDDING, HEAD))
        if not np.array_equal(one.astype(np.float32), other.astype(np.float32)):
            return True
    return False


def hf_config(path: Path) -> dict[str, Any]:
    """Returns the fields of config.json; for a GGUF file, the fields that one would have.

    Of a model that also sees images, they are those of its text model alone.
    """
    if path.suffix == ".gguf":
        return gguf.open_file(path).config()
    fields = _fields(path)
    try:
        return text_part.fields_of(fields)
    except UserError as error:
        raise _at(path, error) from None


def _fields(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        fields = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: missing: {path} is not a model folder") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}): download it again") from None
    if not isinstance(fields, dict):
        raise UserError(f"{file}: a JSON {type(fields).__name__}, not an object: download it again")
    return fields


def check(path: Path, cfg: ModelConfig) -> None:
    """Raises UserError if the tensors of a folder or GGUF file do not fit the model.

    It reads names and shapes only.
    """
    _open(path, cfg)


def _source(path: Path) -> gguf.GgufFile | shards.StoredTensors:
    """Returns the tensors of a folder or GGUF file; of a model with images, its text model's."""
    if path.suffix == ".gguf":
        return gguf.open_file(path)
    source = shards.open_folder(path)
    return text_part.tensors_of(source) if text_part.family_of(_fields(path)) else source


def _open(path: Path, cfg: ModelConfig) -> tuple[WeightSource, list[tensors.Tensor]]:
    source: WeightSource = _source(path)
    wanted = tensors.of(cfg)
    _check(path, tensors.stored_shapes(wanted), source.shapes, cfg)
    return source, wanted


def load(path: Path, cfg: ModelConfig, shardings: nnx.State | None = None) -> nnx.State:
    """Returns the params of a Transformer, each leaf placed by its sharding.

    `shardings` has the structure of the params; None puts all on the first device. Each process
    reads one leaf at a time, and only the slices that its devices hold. Adapters have their first
    values.
    """
    start = time.monotonic()
    source, wanted = _open(path, cfg)
    unread = [file.name for file in getattr(source, "unread", ())]
    if unread:
        log.info("not read, as in transformers: %s", ", ".join(unread))
    if left_out := getattr(source, "left_out", ()):
        hosts.note(f"{path}: the text model alone is loaded; {_parts(left_out)} are left out")
    by_path: dict[tuple, list[tensors.Tensor]] = {}
    for tensor in wanted:
        by_path.setdefault(tensor.path, []).append(tensor)
    params = abstract_params(cfg)
    if shardings is None:
        one = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, params)
    placed = dict(nnx.to_flat_state(shardings))
    leaves = {}
    # The largest leaf first, because its copy on the host needs the most free memory.
    stored, new = nnx.split_state(params, lambda path, _: path in by_path, ...)
    largest_first = sorted(nnx.to_flat_state(stored), key=_size, reverse=True)
    reading = progress.told(largest_first, f"loading {path}", "arrays", len(largest_first))
    for at, variable in reading:
        array = _leaf(by_path[at], source, variable, placed[at].get_value())
        leaves[at] = variable.replace(jax.block_until_ready(array))
    log.info("loaded %s in %.1f s, peak host memory %.2f GB", path, *_cost(start))
    loaded = nnx.from_flat_state([(at, leaves[at]) for at, _ in nnx.to_flat_state(stored)])
    return lora.joined(_start(cfg, shardings[lora.NAME]), loaded) if new else loaded


def _start(cfg: ModelConfig, shardings: nnx.State) -> nnx.State:
    """Returns the first values of the adapters."""
    how = cfg.lora
    assert how is not None

    def draw() -> nnx.State:
        rngs = nnx.Rngs(how.seed)
        return nnx.state(lora.Adapters(how, registry.layer_shapes(cfg), cfg.num_layers, rngs=rngs))

    return nnx.State({lora.NAME: jax.jit(draw, out_shardings=shardings)()})


def draw(cfg: ModelConfig, seed: int, shardings: nnx.State) -> nnx.State:
    """Returns random params of a Transformer. Each device draws the values that it holds."""

    def params() -> nnx.State:
        return nnx.split(Transformer(cfg, rngs=nnx.Rngs(seed)))[1]

    return jax.jit(params, out_shardings=shardings)()


def abstract_params(cfg: ModelConfig) -> nnx.State:
    """Returns the params of a Transformer as shapes."""
    return nnx.state(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))


def _size(leaf: tuple[tuple, nnx.Variable]) -> int:
    return math.prod(leaf[1].get_value().shape)


def _leaf(
    parts: list[tensors.Tensor], source: WeightSource, variable: nnx.Variable, sharding: Sharding
) -> jax.Array:
    """Returns one leaf of the params, read from its tensors and placed on its devices."""
    shape, dtype = variable.get_value().shape, variable.get_value().dtype
    by_place = {part.place: part for part in parts}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        stacked = len(parts[0].place)
        if not stacked:
            return np.asarray(tensors.part(parts[0], source.read, index), dtype)
        chosen = [range(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
        out = np.empty([len(along) for along in chosen], dtype)
        for at in np.ndindex(*out.shape[:stacked]):
            place = tuple(along[i] for along, i in zip(chosen[:stacked], at, strict=True))
            out[at] = tensors.part(by_place[place], source.read, index[stacked:])
        return out

    slices: dict[tuple, np.ndarray] = {}

    def once(index: tuple[slice, ...] | None) -> np.ndarray:
        """Returns a slice, read once for all devices that hold it."""
        assert index is not None, shape
        key = tuple((s.start, s.stop) for s in index)
        if key not in slices:
            slices[key] = read(index)
        return slices[key]

    return jax.make_array_from_callback(shape, sharding, once)


def _check(
    path: Path,
    wanted: dict[str, tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
    cfg: ModelConfig,
) -> None:
    """Raises one UserError for all tensors that are missing, unexpected or misshapen."""
    missing = [name for name in wanted if name not in found]
    extra = [n for n in found if n not in wanted and not n.endswith("rotary_emb.inv_freq")]
    if cfg.tie_embeddings:
        # Some tied checkpoints store the embedding twice: `read_config` has compared them.
        extra = [name for name in extra if name != HEAD]
    misshapen = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "unexpected": extra, "misshapen": misshapen}
    table = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if table:
        raise UserError(f"{path}: the tensors do not fit config.json; {table}")


def _parts(names: tuple[str, ...]) -> str:
    """Returns the parts of a model that have these tensors, and how many each has."""
    parts = Counter(name.removeprefix("model.").split(".")[0] for name in names)
    return " and ".join(f"{part} ({count} tensors)" for part, count in sorted(parts.items()))


def _listed(names: list[str]) -> str:
    """Returns the first names, and the number of the others."""
    others = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + others


def stored_dtype(path: Path) -> str:
    """Returns bfloat16, float16 or float32: the type of most stored numbers of a model.

    It is bfloat16 for quantised numbers. A folder without weights has the dtype of its config.json.
    """
    try:
        source = _source(path)
    except UserError:
        fields = hf_config(path)
        said = fields.get("dtype") or fields.get("torch_dtype")
        return said if said in shards.DTYPES else "bfloat16"
    sizes: dict[str, int] = {}
    for name, shape in source.shapes.items():
        kind = source.kinds[name]
        sizes[kind] = sizes.get(kind, 0) + math.prod(shape)
    most = max(sizes, key=sizes.__getitem__, default="BF16")
    return {stored: name for name, stored in shards.NAMES.items()}.get(most, "bfloat16")


def _cost(start: float) -> tuple[float, float]:
    """Returns seconds since `start`, and the process's peak memory in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.monotonic() - start, peak * 1024 / 1e9
