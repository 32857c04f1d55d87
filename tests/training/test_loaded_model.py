"""Checks of a model and its tokenizer before the weights load, and the day of a run."""

from __future__ import annotations

import json

import pytest
import tiny

from sdjax import config
from sdjax.errors import UserError
from sdjax.tasks.arithmetic import Arithmetic
from sdjax.tokenizer import Tokenizer
from sdjax.training import loaded_model


def job(folder, out, **fields):
    model = config.Model(path=str(folder), compute_dtype="float32")
    return config.Evaluate(out=str(out), task=Arithmetic(), model=model, **fields)


def test_a_resumed_run_keeps_the_day_that_its_template_reads(tmp_path):
    folder, out = tiny.model_folder(tmp_path / "m"), tmp_path / "run"
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}")
    first = loaded_model.open_model(job(folder, out).model, config.Mesh())
    dated = first.dated(job(folder, out))
    assert dated.model.date == first.tokenizer.date is not None
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model": {"date": "2024-02-03"}}))
    assert loaded_model.kept_date(job(folder, out)).model.date is None
    kept = loaded_model.kept_date(job(folder, out, resume=True))
    again = loaded_model.open_model(kept.model, config.Mesh())
    assert again.tokenizer.prompt_text([{"role": "user", "content": ""}]) == "2024-02-03"
    assert again.dated(kept) == kept


def test_a_template_without_a_clock_adds_no_day_to_the_config(tmp_path):
    folder = tiny.model_folder(tmp_path / "m")
    given = job(folder, tmp_path)
    assert loaded_model.open_model(given.model, config.Mesh()).dated(given) == given


def test_a_tokenizer_larger_than_the_model_ends_before_the_weights_load(tmp_path):
    folder = tiny.model_folder(tmp_path / "m", vocab_size=256)
    with pytest.raises(UserError, match="beyond the model's embedding of 256 rows"):
        loaded_model.open_model(job(folder, tmp_path).model, config.Mesh())


def test_an_exported_model_keeps_the_template_of_the_config(tmp_path):
    folder = tiny.model_folder(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    source = config.Model(path=str(folder), compute_dtype="float32", chat_template="{{ 'own' }}")
    model = loaded_model.open_model(source, config.Mesh())
    model.export(model.load(), tmp_path / "model")
    assert (
        Tokenizer.load(tmp_path / "model").prompt_text([{"role": "user", "content": ""}]) == "own"
    )
