"""A fingerprint changes with what it stands for, and with nothing else."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from sdjax import config
from sdjax.learner.supervised import Conversation
from sdjax.records import Example
from sdjax.training import fingerprint, loaded_model
from sdjax.training.evaluation import HeldOut


def example(i, **changes):
    message = {"role": "user", "content": f"What is {i}?"}
    return replace(Example(id=str(i), messages=(message,), answer=str(i), task="t"), **changes)


ROWS = [example(i) for i in range(5)]


def opened(folder):
    return loaded_model.open_model(config.Model(path=str(folder)), config.Mesh())


@pytest.fixture(scope="module")
def whole(model):
    return opened(model)


CHANGED = {
    "an answer": [*ROWS[:4], example(4, answer="5")],
    "a solution": [*ROWS[:4], example(4, solution="4")],
    "the order": ROWS[::-1],
    "a row less": ROWS[:4],
    "a question": [*ROWS[:4], example(4, messages=({"role": "user", "content": "?"},))],
}


@pytest.mark.parametrize("rows", CHANGED.values(), ids=CHANGED)
def test_other_rows_have_another_fingerprint(whole, rows):
    before, after = (fingerprint.of_run(whole, of)["data"] for of in (ROWS, rows))
    assert before != after and before.startswith("5 rows, ")
    assert fingerprint.of_run(whole, [*ROWS])["data"] == before
    sets = [[HeldOut(name="s", task=None, examples=of, overlong=0)] for of in (ROWS, rows)]
    first, second = (fingerprint.of_run(whole, sets=of)["held_out"] for of in sets)
    assert first != second


def test_conversations_count_tokens_and_where_the_answer_begins(whole):
    a = Conversation(tokens=np.arange(4, dtype=np.int32), start=2)
    b = replace(a, start=1)
    marks = [fingerprint.of_run(whole, [of])["data"] for of in (a, b)]
    assert marks[0] != marks[1]


def test_a_copy_of_a_model_has_its_fingerprints_and_each_changed_file_another(
    model, whole, tmp_path
):
    before = fingerprint.of_run(whole)
    assert set(before) == {"tokenizer", "template", "weights"}

    def changed(name, edit):
        folder = tmp_path / name.replace(".", "_")
        shutil.copytree(model, folder)
        edit(folder / name)
        after = fingerprint.of_run(opened(folder))
        return {k for k in before if before[k] != after[k]}

    assert changed("config.json", lambda file: None) == set()
    weights = next(model.glob("*.safetensors")).name

    def other_number(file):
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)

    assert changed(weights, other_number) == {"weights"}

    def other_template(file):
        file.write_text(file.read_text().replace("assistant", "helper"))

    assert changed("chat_template.jinja", other_template) == {"template"}

    def other_words(file):
        fields = json.loads(file.read_text())
        vocabulary = fields["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(fields))

    assert changed("tokenizer.json", other_words) == {"tokenizer"}


def test_a_snapshot_of_the_hub_has_its_revision(model, tmp_path):
    folder = tmp_path / "models--me--m" / "snapshots" / "0123abc"
    shutil.copytree(model, folder)
    assert fingerprint.of_run(opened(folder))["revision"] == "0123abc"
