"""Tiny tokenizers of every type that models have, learned from a few lines."""

from __future__ import annotations

import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from sdjax import tokenizer

TEXTS = [
    "the cat sat on the mat, wait a moment! hmm ünï 数学 🙂 don't 123 + 45",
    "it is what it is \n\n new line\ttab  two  spaces </s> <|im_end|> 7 < 8 | 9 >",
    "日本語のテキスト 👩‍👩‍👧 é e\u0301",
]
ADDED = ("<s>", "</s>", "<unk>", "<think>", "</think>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_level() -> Tokenizer:
    fast = Tokenizer(models.BPE())
    # Without splitting, a token may hold the end of one character and the start of another.
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(TEXTS * 9, trainer)
    return fast


def _byte_fallback() -> Tokenizer:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=90, show_progress=False)
    learned.train_from_iterator([t.encode("ascii", "ignore").decode() for t in TEXTS * 9], trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = [*ADDED[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in model["vocab"] if token not in tokens]
    fast = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast


def _llama2() -> Tokenizer:
    fast = _byte_fallback()
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast


def _mistral() -> Tokenizer:
    fast = _byte_fallback()
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return fast


def _wordpiece() -> Tokenizer:
    fast = Tokenizer(models.WordPiece(unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["<unk>"], show_progress=False
    )
    fast.train_from_iterator(TEXTS * 9, trainer)
    return fast


def _unigram() -> Tokenizer:
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    fast.train_from_iterator(TEXTS * 9, trainer)
    return fast


KINDS = {
    "byte-level": _byte_level,
    "llama 2": _llama2,
    "mistral": _mistral,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}


def tokenizer_of(kind: str, template: str = TEMPLATE) -> tokenizer.Tokenizer:
    """Returns a tokenizer of a type, in which tags and turn tokens alike are special."""
    fast = KINDS[kind]()
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ADDED])
    base = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer.Tokenizer(base=base, eos_ids=())
