"""Tokenizer and chat template; the only place that knows special tokens.

transformers is imported on first use: it takes seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.errors import UserError
from sdjax.models.files import gguf
from sdjax.models.files.resolve import resolve
from sdjax.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Any of these makes a folder one with a tokenizer.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Tokens that end a turn, in case neither generation_config.json nor the tokenizer says so.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
CONTROL, USER_DEFINED = 3, 4  # token types in GGUF
PART = "\N{REPLACEMENT CHARACTER}"  # what decoders give for a part of a character
LONGEST_CHARACTER = 4  # bytes in UTF-8, of which a token has one at least


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to tokens and back. `base` is transformers' tokenizer, `eos_ids` the model's own."""

    base: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]

    @classmethod
    def load(cls, path: str | Path, revision: str | None = None) -> Tokenizer:
        """Returns the tokenizer of a model: a folder, hub id, GGUF file or package:NAME."""
        local = resolve(str(path), revision)
        tokenizer = _from_gguf(local) if local.suffix == ".gguf" else _from_folder(local)
        if not tokenizer.base.chat_template:
            raise UserError(
                f"{local}: the tokenizer has no chat template: add a chat_template.jinja"
            )
        return tokenizer

    def encode_prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> np.ndarray:
        """Returns int32 tokens of a conversation, up to where the assistant's turn begins.

        `enable_thinking` reaches the chat template only where it is not None.
        """
        text = self.prompt_text(messages, enable_thinking=enable_thinking)
        return self.encode(text)

    def prompt_text(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> str:
        """Returns the text that `encode_prompt` encodes, its special tokens written out."""
        from jinja2 import TemplateError

        thinking: dict[str, Any] = {}
        if enable_thinking is not None:
            thinking["enable_thinking"] = enable_thinking
        try:
            text = self.base.apply_chat_template(
                [dict(m) for m in messages],  # type: ignore[arg-type]
                add_generation_prompt=True,
                tokenize=False,
                **thinking,
            )
        except TemplateError as error:
            raise UserError(
                f"{self.base.name_or_path}: the chat template refuses "
                f"{[m['role'] for m in messages]}: {error}; mend its chat_template.jinja"
            ) from None
        return str(text)

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens of a text, with no special tokens around it."""
        return np.array(self.base.encode(text, add_special_tokens=False, verbose=False), np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns what `encode` gives for each text, on all cores."""
        ids = self.base(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(of_text, np.int32) for of_text in ids]

    def encode_completions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 tokens of assistants' turns as the model would sample them.

        The text as it is, thinking included, and the token that ends the turn: what a chat template
        makes of an earlier turn may be something else.
        """
        end = np.array([self.turn_end_id], np.int32)
        return [np.concatenate([ids, end]) for ids in self.encode_all(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text without special tokens."""
        return self._decode(ids, skip_special_tokens=True)

    def decode_raw(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text with special tokens."""
        return self._decode(ids, skip_special_tokens=False)

    def token_texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the text of each token by itself; parts of a character are U+FFFD."""
        return [self._text_of_token(i) for i in np.asarray(ids).tolist()]

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the text of each token so that together they make that of all.

        A character that several tokens spell goes to the first; the others have "". What never
        becomes a character is U+FFFD, as in token_texts.
        """
        ids = np.asarray(ids).tolist()
        out = [self._text_of_token(i) for i in ids]
        start = 0
        while start < len(ids):
            end = start + 1
            if PART in out[start]:
                ends = range(start + 2, min(start + LONGEST_CHARACTER, len(ids)) + 1)
                whole = {
                    e: text for e in ends if PART not in (text := self.decode_raw(ids[start:e]))
                }
                if whole:
                    end = min(whole)
                    out[start:end] = [whole[end], *[""] * (end - start - 1)]
            start = end
        return out

    def _decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool) -> str:
        text = self.base.decode(
            [int(i) for i in ids],
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    @cached_property
    def _text_of_token(self) -> Callable[[int], str]:
        # A step asks for millions of tokens, of which few are different.
        return cache(lambda i: self.decode_raw([i]))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a completion: the model's, the tokenizer's, the chat template's."""
        ids = set(self.eos_ids)
        if self.base.eos_token_id is not None:
            ids.add(self.base.eos_token_id)
        vocabulary = self.base.get_vocab()
        template = str(self.base.chat_template)
        ids |= {vocabulary[t] for t in TURN_ENDS if t in vocabulary and t in template}
        return tuple(sorted(ids))

    @cached_property
    def turn_end_id(self) -> int:
        """The token that ends an assistant's turn: the chat template's, or the tokenizer's EOS."""
        vocabulary, template = self.base.get_vocab(), str(self.base.chat_template)
        written = [vocabulary[t] for t in TURN_ENDS if t in vocabulary and t in template]
        if not written and self.base.eos_token_id is not None:
            return self.base.eos_token_id
        return written[0] if written else self.stop_ids[0]

    @property
    def pad_id(self) -> int:
        """Fills rows up. It may be a stop token, so lengths tell what is padding, not this."""
        pad = self.base.pad_token_id
        return self.stop_ids[0] if pad is None else pad

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens the tokenizer knows; a model's vocabulary may be padded beyond it."""
        return len(self.base)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template."""
        self.base.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text())
        # The name that transformers 4 knows too; transformers 5 writes a new one.
        if fields.get("tokenizer_class") == "TokenizersBackend":
            fields["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(fields, indent=2) + "\n")


def _from_folder(folder: Path) -> Tokenizer:
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise UserError(f"{folder}: no tokenizer: none of {', '.join(VOCABULARIES)} is there")
    _be_quiet()
    from transformers import AutoTokenizer

    try:
        base = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {reason}; download it again"
        ) from None
    return Tokenizer(base=base, eos_ids=_eos_ids(folder))


def _be_quiet() -> None:
    """Keeps transformers from advising to install PyTorch, which nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _eos_ids(folder: Path) -> tuple[int, ...]:
    """Returns the stop tokens of generation_config.json, or where it is missing config.json's."""
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


def _from_gguf(path: Path) -> Tokenizer:
    """Builds the tokenizer from a GGUF's vocabulary and merges.

    The one that transformers converts from a GGUF loses the splitting of digits.
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
    return Tokenizer(base=base, eos_ids=() if turn_end is None else (turn_end,))


def _named_tokens(file: gguf.GgufFile, tokens: list[str]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: file.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
