"""Learns a small tokenizer from texts and writes it as a Hugging Face folder.

It is a byte-level BPE, so that it can write any text. Each word or number that is frequent in the
texts is one token. `tokenizers` is imported on first use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sdjax.errors import writing
from sdjax.io.files import write_text

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# One token each. Unlike the three tokens above, they are part of the text.
THINKING = ("<think>", "</think>")
CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def learn(texts: Iterable[str], size: int, folder: Path, *, context: int) -> int:
    """Writes a tokenizer with at most `size` tokens into `folder`; returns how many it has.

    The files are tokenizer.json, tokenizer_config.json, the chat template and
    generation_config.json. `size` is 261 or more; `context` is the model's longest sequence in
    tokens. The same texts give the same files.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    fast.decoder = decoders.ByteLevel()
    control = [AddedToken(t, special=True, normalized=False) for t in (PAD, START, END)]
    thinking = [AddedToken(t, special=False, normalized=False) for t in THINKING]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[*control, *thinking],
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    # The trainer makes all these tokens special, but THINKING is text.
    fields = json.loads(fast.to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["content"] not in THINKING
    ids = fast.get_vocab()
    with writing(folder):
        folder.mkdir(exist_ok=True)
    write_text(folder / "tokenizer.json", json.dumps(fields, ensure_ascii=False) + "\n")
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    )
    ends = {"eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    _write(folder / "generation_config.json", ends)
    return len(ids)


def _write(file: Path, fields: dict) -> None:
    write_text(file, json.dumps(fields, indent=2) + "\n")
