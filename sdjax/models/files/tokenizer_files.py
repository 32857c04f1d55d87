"""Reads tokenizers and chat templates from a folder or a GGUF file.

transformers is imported on first use, because importing it takes seconds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjax.errors import UserError
from sdjax.models.files import gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A folder with any of these files has a tokenizer.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
CONTROL, USER_DEFINED = 3, 4  # token types in GGUF


def read_tokenizer(local: Path) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Returns the tokenizer of a folder or GGUF file, and the stop tokens that its model names.

    The tokenizer may lack a chat template.
    """
    return _from_gguf(local) if local.suffix == ".gguf" else _from_folder(local)


def chosen_template(found: str | dict[str, str] | None, name: str | None, local: Path) -> str:
    """Returns the template to use of those that a model has; raises UserError if none fits."""
    if not found:
        raise UserError(
            f"{local}: the tokenizer has no chat template: add a chat_template.jinja, or set "
            "model.chat_template"
        )
    templates = found if isinstance(found, dict) else {"default": found}
    if (name or "default") not in templates:
        raise UserError(
            f"model.chat_template_name is {name!r}: the chat templates of {local} are "
            f"{', '.join(sorted(templates))}; name one"
        )
    return templates[name or "default"]


def given_template(template: str) -> str:
    """Returns the template that model.chat_template holds or names."""
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise UserError(
            f"model.chat_template is {template!r}: cannot be read ({reason}); give a Jinja "
            "template or its file"
        ) from None


def _from_folder(folder: Path) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise UserError(f"{folder}: no tokenizer: none of {', '.join(VOCABULARIES)} is there")
    eos_ids = _eos_ids(folder)
    _be_quiet()
    from transformers import AutoTokenizer

    try:
        base = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {reason}; download it again"
        ) from None
    return base, eos_ids


def _be_quiet() -> None:
    """Silences transformers' advice to install PyTorch, because nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _eos_ids(folder: Path) -> tuple[int, ...]:
    """Returns the stop tokens of generation_config.json; without that file, of config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.exists():
            return _eos_ids_of(path)
    return ()


def _eos_ids_of(file: Path) -> tuple[int, ...]:
    try:
        ids = json.loads(file.read_text())["eos_token_id"]
    except KeyError:
        return ()
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not JSON ({error}): download it again") from None
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if not all(isinstance(i, int) for i in ids):
        raise UserError(f"{file}: eos_token_id is {ids!r}: must be token numbers")
    return tuple(ids)


def _from_gguf(path: Path) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Returns a tokenizer built from the vocabulary and merges of a GGUF file.

    transformers can convert a GGUF file too, but its tokenizer does not split digits.
    """
    _be_quiet()
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    file = gguf.open_file(path)
    kind, splitting = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if (kind, splitting) != ("gpt2", "smollm"):
        raise UserError(
            f"{path}: tokenizer.ggml.model {kind!r} with pre {splitting!r}: only 'gpt2' with "
            "'smollm' is read from GGUF; use the model's Hugging Face folder"
        )
    tokens = file.get("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in file.get("tokenizer.ggml.merges")]
    fast = Fast(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type")
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (CONTROL, USER_DEFINED):
            fast.add_tokens([AddedToken(token, special=type_ == CONTROL, normalized=False)])
    named = _named_tokens(file, tokens)
    base = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        chat_template=file.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=file.shape("context_length"),
        **named,
    )
    turn_end = file.get("tokenizer.ggml.eot_token_id")
    return base, () if turn_end is None else (turn_end,)


def _named_tokens(file: gguf.GgufFile, tokens: list[str]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: file.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
