"""Tokenizer and chat template. No other module knows special tokens.

transformers is imported on first use, because importing it takes seconds.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax import token_pieces
from sdjax.errors import UserError
from sdjax.models.files import tokenizer_files
from sdjax.models.files.resolve import resolve
from sdjax.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that end a turn, for models whose generation_config.json and tokenizer do not say so.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
# Further tokens between turns; those that a chat template writes around a user's turn are found.
TURN_MARKS = (
    *TURN_ENDS,
    *("<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|endoftext|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<start_of_turn>"),
    *("[INST]", "[/INST]", "<|begin_of_text|>", "<|end_of_text|>"),
)
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # special tokens with a name
# Tokens with such a word in them are part of a text, whatever their flag says.
MEANING = re.compile(r"think|thought|reason|answer|solution|tool|function|python_tag", re.I)
MARKUP = re.compile(r"[<\[]\S+[>\]]")
CLOCK = re.compile(r"\bstrftime_now\b")
LONGEST_EXACT = 1000  # tokens; the exact split needs a time that grows with their square
PROBE = (
    "Wait, 12.5% of 3,000 is 375.0; so x^2 + \\frac{1}{2} = \\boxed{7}.\n\n"
    "\tdef f(a: int) -> str:  return f'{a!r}'\n日本語 naïve Ω 🙂 <think> </think>"
)
"""A text whose tokens differ where the rules of a tokenizer do."""
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token that stands for a byte
# Characters that no text should have (Unicode, "noncharacters"). One marks text of the data.
MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Turns text into tokens and back.

    Text of data and of models never becomes a token that rules the conversation, such as the end
    of a turn. Where it spells one, it is encoded like any other text. Tags such as <think> are
    text: they become their token and stay in decoded text, whether or not they are special.
    """

    base: PreTrainedTokenizerBase
    """The tokenizer of transformers. Its chat template is the one in use."""
    eos_ids: tuple[int, ...]
    """The stop tokens that the model's own files name."""
    date: str | None = None
    """The day, as YYYY-MM-DD, that the chat template reads in place of the clock."""
    rows: int | None = None
    """The rows of the model's embedding; None: not known."""
    _texts: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The text of each token met so far: a step has millions of tokens, but few different ones."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        revision: str | None = None,
        *,
        chat_template: str | None = None,
        chat_template_name: str | None = None,
        date: str | None = None,
    ) -> Tokenizer:
        """Returns the tokenizer of a model: a folder, hub id, GGUF file or package:NAME.

        Raises UserError if it cannot be read, or if it is not clear which chat template to use.

        Args:
            path: The model.
            revision: Branch, tag or commit of a hub id.
            chat_template: A template, or the file of one, in place of the model's own.
            chat_template_name: Chooses one of several templates of the model.
            date: The day that the template reads, YYYY-MM-DD; None: today, if it reads the clock.
        """
        local = resolve(str(path), revision)
        tokenizer = cls.read(local)
        base = tokenizer.base
        if chat_template is not None:
            base.chat_template = tokenizer_files.given_template(chat_template)
        else:
            base.chat_template = tokenizer_files.chosen_template(
                base.chat_template, chat_template_name, local
            )
        if date is None and CLOCK.search(base.chat_template):
            date = today()
        return replace(tokenizer, date=date)

    @classmethod
    def read(cls, local: Path) -> Tokenizer:
        """Returns the tokenizer of a folder or GGUF file, which may lack a chat template."""
        base, eos_ids = tokenizer_files.read_tokenizer(local)
        return cls(base=base, eos_ids=eos_ids)

    def for_rows(self, rows: int) -> Tokenizer:
        """Returns the tokenizer for a model whose embedding has that many rows.

        Raises UserError if a text, the chat template or a stop token can have an id beyond them.
        """
        beyond = {i: token for token, i in self.base.get_vocab().items() if i >= rows}
        beyond |= {i: "a stop token" for i in self.stop_ids if i >= rows and i not in beyond}
        skeleton = self._skeleton
        for i, token in sorted(beyond.items()):
            written = token in self.base.chat_template or token in skeleton
            if written or i in self.stop_ids or token not in self._control:
                raise UserError(
                    f"{self.base.name_or_path}: the tokenizer's token {i} ({token!r}) is beyond "
                    f"the model's embedding of {rows} rows; resize the embedding, or use the "
                    "tokenizer that belongs to the model"
                )
        return replace(self, rows=rows)

    def encode_prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> np.ndarray:
        """Returns int32 tokens of a conversation, up to the start of the assistant's turn.

        `enable_thinking` reaches the chat template unless it is None. Raises UserError if the
        template refuses the conversation.
        """
        return self.encode_prompts([messages], enable_thinking=enable_thinking)[0]

    def encode_prompts(
        self, conversations: Sequence[Sequence[Message]], *, enable_thinking: bool | None = None
    ) -> list[np.ndarray]:
        """Returns the result of `encode_prompt` for each conversation. It runs on all cores."""
        parts = []
        for messages in conversations:
            marked, mark = self._marked(messages)
            text = self._rendered(marked, enable_thinking)
            # Odd parts are what the data spells; `mark` stands before each of them.
            found = re.split(f"{mark}({self._pattern})", text) if mark else [text]
            parts.append([part.replace(mark, "") for part in found] if mark else found)
        return self._encode_parts(parts)

    def prompt_text(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> str:
        """Returns the text of `encode_prompt`, with its special tokens."""
        return self._rendered(messages, enable_thinking)

    def _rendered(self, messages: Sequence[Message], enable_thinking: bool | None) -> str:
        from jinja2 import TemplateError

        options: dict[str, Any] = {}
        if enable_thinking is not None:
            options["enable_thinking"] = enable_thinking
        template = str(self.base.chat_template)
        if self.date is not None:
            day = datetime.datetime.fromisoformat(self.date)
            if CLOCK.search(template):
                template = _clock_of(day) + template
            else:
                options["date_string"] = day.strftime("%d %b %Y")  # as Llama 3.1 writes it
        try:
            text = self.base.apply_chat_template(
                [dict(m) for m in messages],  # type: ignore[arg-type]
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                **options,
            )
        except (TemplateError, TypeError) as error:
            raise UserError(
                f"{self.base.name_or_path}: the chat template refuses "
                f"{[m['role'] for m in messages]}: {error}; mend its chat_template.jinja"
            ) from None
        return str(text)

    def _marked(self, messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
        """Returns the messages with a mark before each control token they spell, and the mark.

        The mark is "" if they spell none. It is a character that the messages do not have.
        """
        whole = "\0".join(_strings(messages))
        if not re.search(self._pattern, whole):
            return messages, ""
        mark = next(m for m in MARKS if m not in whole)
        return _mapped(messages, lambda text: re.sub(self._pattern, rf"{mark}\g<0>", text)), mark

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens of a text of data or a model, without special tokens around it."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the result of `encode` for each text. It runs on all cores."""
        return self._encode_parts([re.split(f"({self._pattern})", text) for text in texts])

    def encode_completions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 tokens of assistants' turns as the model would sample them.

        They are the tokens of the whole text, thinking included, and the token that ends the turn.
        A chat template is not used, because templates may change earlier turns.
        """
        end = np.array([self.turn_end_id], np.int32)
        return [np.concatenate([ids, end]) for ids in self.encode_all(texts)]

    def _encode_parts(self, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Returns the tokens of texts in parts; odd parts spell control tokens and stay text."""
        whole = [i for i, parts in enumerate(texts) if len(parts) == 1]
        out: dict[int, list[int]] = {}
        if len(whole) == 1:
            out[whole[0]] = self._encoded(texts[whole[0]][0])
        elif whole:
            found = self.base([texts[i][0] for i in whole], add_special_tokens=False, verbose=False)
            out |= zip(whole, found["input_ids"], strict=True)
        for i in range(len(texts)):
            if i not in out:
                out[i] = self._joined(texts[i])
        return [np.array(out[i], np.int32) for i in range(len(texts))]

    def _joined(self, parts: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(parts):
            if part:
                ids += self._following(part, first=not ids, as_text=number % 2 == 1)
        return ids

    def _following(self, part: str, *, first: bool, as_text: bool) -> list[int]:
        """Returns the tokens of a part of a text, as they are behind other text unless `first`."""
        encode = self._encoded_as_text if as_text else self._encoded
        ids = encode(part)
        # SentencePiece adds a space to the beginning of a text, so another text comes before it.
        for before in () if first else ("\n", "0", "|"):
            known, both = encode(before), encode(before + part)
            if both[: len(known)] == known:  # they have not merged
                ids = both[len(known) :]
                break
        if as_text and len(part) > 1 and self.base.get_vocab().get(part) in ids:
            rest = self._following(part[1:], first=False, as_text=True)
            return self._following(part[:1], first=first, as_text=True) + rest
        return ids

    def _encoded(self, text: str) -> list[int]:
        return self.base.encode(text, add_special_tokens=False, verbose=False)

    def _encoded_as_text(self, text: str) -> list[int]:
        """Returns the tokens of a text as if no token had been added to the vocabulary."""
        backend = getattr(self.base, "backend_tokenizer", None)
        if backend is None:
            return self.base.encode(text, add_special_tokens=False, split_special_tokens=True)
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text without the tokens that begin, end or pad a turn.

        Other special tokens stay, because tags such as <think> often are special.
        """
        dropped = self.turn_ids
        return self.decode_raw([i for i in np.asarray(ids).tolist() if i not in dropped])

    def decode_raw(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text with all special tokens."""
        text = self.base.decode(
            np.asarray(ids, np.int64).tolist(),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def token_texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the text that each token has inside a text. A part of a character is U+FFFD."""
        tokens: list[int] = np.asarray(ids).tolist()
        for i in set(tokens) - self._texts.keys():
            self._texts[i] = self._inside([i])
        return [self._texts[i] for i in tokens]

    def _inside(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens behind other text: decoders drop the space before a first
        token."""
        before, anchor = self._anchor
        return self.decode_raw([*before, *ids])[len(anchor) :]

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        ids = self._encoded("a")[-1:]
        return ids, self.decode_raw(ids)

    def pieces(self, ids: Sequence[int] | np.ndarray, *, checked: bool = True) -> list[str]:
        """Returns one text per token; joined, they are `decode_raw` of all tokens.

        A character that several tokens spell belongs to the first of them; the others get "".
        Bytes that never complete a character are U+FFFD. Without `checked` it is several times
        faster, but the texts may miss how a decoder treats the whole, such as its first space.
        """
        tokens: list[int] = np.asarray(ids).tolist()
        out = token_pieces.split(tokens, self.token_texts(tokens), self._byte_ids, self._inside)
        if checked and (joined := "".join(out)) != (whole := self.decode_raw(tokens)):
            if joined.removeprefix(" ") == whole:
                out[0] = out[0].removeprefix(" ")  # the space that the decoder drops
            elif len(tokens) <= LONGEST_EXACT:
                beginnings = [self.decode_raw(tokens[:e]) for e in range(1, len(tokens) + 1)]
                out = token_pieces.shares(beginnings)
            else:
                out = [whole] + [""] * (len(tokens) - 1)
        return out

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        vocabulary = self.base.get_vocab()
        return frozenset(i for token, i in vocabulary.items() if BYTE.fullmatch(token))

    @cached_property
    def _added(self) -> dict[str, tuple[int, bool]]:
        """Id and special flag of the tokens that the tokenizer finds in a text before all else."""
        added = self.base.added_tokens_decoder
        return {token.content: (i, token.special) for i, token in added.items()}

    @cached_property
    def _skeleton(self) -> str:
        """The text that the chat template writes around a user's turn; "" if it refuses one."""
        try:
            return self._rendered([Message(role="user", content="")], None)
        except UserError:
            return ""

    @cached_property
    def turn_ids(self) -> frozenset[int]:
        """The tokens that begin, end or pad a turn: they are no part of a decoded text."""
        skeleton = self._skeleton
        named = {getattr(self.base, f"{name}_token_id", None) for name in NAMED}
        marks = {
            i
            for token, (i, _) in self._added.items()
            if token in TURN_MARKS
            or (MARKUP.fullmatch(token) and token in skeleton and not MEANING.search(token))
        }
        known = {i for i in named if i is not None}
        return frozenset({*self.stop_ids, self.pad_id} | marks | known)

    @cached_property
    def _control(self) -> frozenset[str]:
        """The tokens that text of data or a model must not become."""
        return frozenset(
            token
            for token, (i, special) in self._added.items()
            if i in self.turn_ids or (special and not self._is_tag(token))
        )

    def _is_tag(self, token: str) -> bool:
        """Returns whether an added token is part of a text, such as <answer> beside </answer>."""
        partners = {token[:1] + "/" + token[1:], token.replace("/", "", 1)} - {token}
        plain = not {"|", "\uff5c"} & set(token)
        in_template = plain and token in self.base.chat_template
        return bool(MEANING.search(token) or partners & self._added.keys() or in_template)

    @cached_property
    def _pattern(self) -> str:
        """A regular expression of the control tokens, the longest first."""
        longest = sorted(self._control, key=lambda token: (-len(token), token))
        return "|".join(map(re.escape, longest)) or "(?!)"

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
        """The token that ends a turn: that of the chat template, else the tokenizer's EOS."""
        vocabulary, template = self.base.get_vocab(), str(self.base.chat_template)
        written = [vocabulary[t] for t in TURN_ENDS if t in vocabulary and t in template]
        if not written and self.base.eos_token_id is not None:
            return self.base.eos_token_id
        return written[0] if written else self.stop_ids[0]

    @cached_property
    def pad_id(self) -> int:
        """The token that pads rows. It may be a stop token, so only lengths tell padding."""
        pad = self.base.pad_token_id
        beyond = pad is not None and self.rows is not None and pad >= self.rows
        return self.stop_ids[0] if pad is None or beyond else pad

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

    def save_template(self, folder: Path) -> None:
        """Writes the chat template in use into a folder with a tokenizer."""
        (folder / "chat_template.jinja").write_text(self.base.chat_template, encoding="utf-8")
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text()) if path.exists() else {}
        if fields.pop("chat_template", None) is not None:
            path.write_text(json.dumps(fields, indent=2) + "\n")


def _clock_of(day: datetime.datetime) -> str:
    """Returns the head of a chat template in which strftime_now writes a given day.

    It is a macro, because transformers passes no functions to a template. A macro hides the
    function of the same name, which reads the clock, however the template calls it.
    """
    formats = [f"%-{c}" for c in "dmHIMSj"]
    formats += [f"%{c}" for c in "aAbBcCdDeFfgGhHIjklmMpPrRSTuUVwWxXyYzZ"]
    # A mark stands for "%%", whose second sign begins no format.
    written = [("%%", MARKS[0]), *((f, day.strftime(f)) for f in formats), (MARKS[0], "%")]
    calls = "".join(f"|replace({json.dumps(a)}, {json.dumps(b)})" for a, b in written)
    # The empty value keeps a line end at the beginning of the template.
    return "{% macro strftime_now(format) %}{{ format" + calls + " }}{% endmacro %}{{ '' }}"


def today() -> str:
    """Returns the day by the machine's clock, as YYYY-MM-DD."""
    return str(datetime.date.today())


def _strings(value: Any) -> Iterable[str]:
    """Yields the texts in messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Returns messages with each text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, list | tuple) else value
