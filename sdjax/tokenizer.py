"""Tokenizer and chat template. No other module knows special tokens.

transformers is imported on first use, because importing it takes seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.errors import UserError
from sdjax.models.files import gguf
from sdjax.models.files.resolve import resolve
from sdjax.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A folder with any of these files has a tokenizer.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Tokens that end a turn, for models whose generation_config.json and tokenizer do not say so.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
CONTROL, USER_DEFINED = 3, 4  # token types in GGUF
PART = "\N{REPLACEMENT CHARACTER}"  # a decoder's text of a part of a character
LONGEST_CHARACTER = 4  # bytes in UTF-8; a token has at least one of them


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Turns text into tokens and back."""

    base: PreTrainedTokenizerBase
    """The tokenizer of transformers."""
    eos_ids: tuple[int, ...]
    """The stop tokens that the model's own files name."""
    _texts: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The text of each token met so far: a step has millions of tokens, but few different ones."""

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
        """Returns int32 tokens of a conversation, up to the start of the assistant's turn.

        `enable_thinking` reaches the chat template unless it is None. Raises UserError if the
        template refuses the conversation.
        """
        text = self.prompt_text(messages, enable_thinking=enable_thinking)
        return self.encode(text)

    def prompt_text(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> str:
        """Returns the text that `encode_prompt` encodes, with its special tokens."""
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
        """Returns int32 tokens of a text, without special tokens around it."""
        return np.array(self.base.encode(text, add_special_tokens=False, verbose=False), np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the result of `encode` for each text. It runs on all cores."""
        ids = self.base(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(of_text, np.int32) for of_text in ids]

    def encode_completions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 tokens of assistants' turns as the model would sample them.

        They are the tokens of the whole text, thinking included, and the token that ends the turn.
        A chat template is not used, because templates may change earlier turns.
        """
        end = np.array([self.turn_end_id], np.int32)
        return [np.concatenate([ids, end]) for ids in self.encode_all(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text without special tokens."""
        text = self.base.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def decode_raw(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text with special tokens."""
        text = self.base.decode(
            [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def token_texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the text of each token alone. A part of a character is U+FFFD."""
        ids = np.asarray(ids).tolist()
        for i in set(ids) - self._texts.keys():
            self._texts[i] = self.decode_raw([i])
        return [self._texts[i] for i in ids]

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns one text per token; joined, they are the text of all tokens.

        A character that several tokens spell belongs to the first of them; the others get "".
        Tokens that never complete a character are U+FFFD, as in `token_texts`.
        """
        ids = np.asarray(ids).tolist()
        out = self.token_texts(ids)
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

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """All tokens that end a completion, of the model, the tokenizer and the chat template."""
        ids = set(self.eos_ids)
        if self.base.eos_token_id is not None:
            ids.add(self.base.eos_token_id)
        vocabulary = self.base.get_vocab()
        template = str(self.base.chat_template)
        ids |= {vocabulary[t] for t in TURN_ENDS if t in vocabulary and t in template}
        return tuple(sorted(ids))

    @cached_property
    def turn_end_id(self) -> int:
        """The token that ends an assistant's turn: of the chat template, else the tokenizer's EOS."""
        vocabulary, template = self.base.get_vocab(), str(self.base.chat_template)
        written = [vocabulary[t] for t in TURN_ENDS if t in vocabulary and t in template]
        if not written and self.base.eos_token_id is not None:
            return self.base.eos_token_id
        return written[0] if written else self.stop_ids[0]

    @cached_property
    def pad_id(self) -> int:
        """The token that pads rows. It may be a stop token, so only lengths tell padding."""
        pad = self.base.pad_token_id
        return self.stop_ids[0] if pad is None else pad

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens the tokenizer knows. A model's vocabulary may be padded to more."""
        return len(self.base)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template."""
        self.base.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text())
        # transformers 4 does not know the name that transformers 5 writes.
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


def _from_gguf(path: Path) -> Tokenizer:
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
    return Tokenizer(base=base, eos_ids=() if turn_end is None else (turn_end,))


def _named_tokens(file: gguf.GgufFile, tokens: list[str]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: file.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
