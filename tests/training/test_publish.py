"""The model card says how a model was made, and a push leaves the model whole in any case."""

import json
import re
from dataclasses import replace

import pushing
import pytest
import runs
import tiny
import yaml

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import train_job
from sdjax.tasks.math import Math
from sdjax.training import publish

SECRET = "planted-secret-0123456789"


def of_folder(folder):
    """Returns a model that is on no hub."""
    return config.Model(path=str(folder))


def accuracy(value):
    estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"examples": 32, "k": 2, "level": 0.95, "avg@2": estimate, "pass@2": estimate}


def evaluation(step, value):
    figures = {
        "accuracy": accuracy(value),
        "lengths": {"mean": 100 * value},
        "epistemic": {"per_1000_tokens": 58.04},
    }
    other = figures | {"accuracy": accuracy(value / 2)}
    return {"step": step, **figures, "out_of_domain": {"divide": other}}


def train(tmp_path, **changes):
    given = {
        "out": str(tmp_path / "private" / "runs" / "sums"),
        "task": Math(train="hf://datasets/openai/gsm8k/main", test=""),
        "model": config.Model(path="Qwen/Qwen3-1.7B", revision="abc"),
        "checkpoint": config.Checkpoint(push_to="me/sums"),
    }
    return config.Train(**given | changes)


def card(cfg, step, examples, history, *, adapters=False, name="me/sums"):
    """Returns the card of a run with this config."""
    start = {"time": "2026-01-02T03:04:05Z", "sdjax": "1.2", "commit": None, "jax": "3.4"}
    run = publish.Provenance(
        public=config.to_public(cfg),
        step=step,
        history=history,
        examples=str(examples),
        start=start | {"devices": 8, "device": "H100"},
    )
    return publish.card(run, name, adapters=adapters)


def parts(text):
    """Returns the fields at the top of a card, and the rest of it."""
    _, fields, rest = text.split("---\n", 2)
    return yaml.safe_load(fields), rest


def test_a_card_has_base_data_method_steps_figures_config_and_use(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", SECRET)
    cfg = train(tmp_path, profile=f"with {SECRET}")
    history = [evaluation(0, 0.44), evaluation(5, 0.5), evaluation(10, 0.634)]
    text = card(cfg, 10, 64, history)
    fields, rest = parts(text)
    assert fields == {
        "base_model": "Qwen/Qwen3-1.7B",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sdjax", "sdpo"],
    }
    assert rest.startswith("\n# sums\n")
    assert "| base model | Qwen/Qwen3-1.7B, revision abc |" in rest
    assert f"SDPO (arXiv:2601.20802), divergence full, teacher {cfg.teacher.kind} |" in rest
    assert "Math (train hf://datasets/openai/gsm8k/main): 64 training examples" in rest
    assert "| steps | 10 of 32 questions x 8 completions |" in rest
    assert "| held out | 32 | avg@2, % | 44.0 (34.0 to 54.0) | 63.4 (53.4 to 73.4) |" in rest
    assert "| divide | 32 | pass@2, % | 22.0 (12.0 to 32.0) | 31.7 (21.7 to 41.7) |" in rest
    assert "| held out |  | words of doubt per 1,000 tokens | 58.0 | 58.0 |" in rest
    assert "| made | 2026-01-02, sdjax 1.2, jax 3.4, 8 x H100 |" in rest
    assert "95 % intervals" in rest and "vllm serve me/sums\n" in rest
    (python,) = re.findall(r"```python\n(.*?)```", rest, re.S)
    compile(python, "card", "exec")
    (written,) = re.findall(r"```json\n(.*?)```", rest, re.S)
    assert json.loads(written)["loss"]["distillation"] == 1.0
    assert SECRET not in text and str(tmp_path) not in text and json.loads(written)["out"] == "sums"


@pytest.mark.parametrize(
    ("changes", "tag", "says"),
    [
        ({"loss": config.Loss(distillation=0.0)}, "grpo", "GRPO, advantage mean"),
        ({"loss": config.Loss(distillation=0.25)}, "sdpo", "0.25 x SDPO"),
        ({"lora": config.Lora(rank=8)}, "sdpo", "| adapters | rank 8, alpha"),
    ],
)
def test_a_card_names_the_method(changes, tag, says, tmp_path):
    fields, rest = parts(card(train(tmp_path, model=of_folder(tmp_path), **changes), 1, 4, []))
    assert fields["tags"] == ["sdjax", tag] and says in rest
    assert "base_model" not in fields and "## Figures" not in rest


def test_a_card_of_adapters_and_of_a_finetuning(tmp_path):
    text = card(train(tmp_path), 1, 4, [], adapters=True)
    assert parts(text)[0]["library_name"] == "peft" and "AutoPeftModelForCausalLM" in text
    assert "--enable-lora" in text
    cfg = config.SFT(out="x", source="hf://datasets/a/b")
    fields, rest = parts(card(cfg, 7, 99, []))
    assert fields["tags"] == ["sdjax", "sft"] and fields["datasets"] == ["a/b"]
    assert "hf://datasets/a/b: 99 conversations" in rest and "| steps | 7 updates of 64" in rest


def test_no_text_of_a_config_ends_a_block_or_a_cell(tmp_path):
    template = "{prompt}{solution}{feedback}\n```\n# evil | cell\n````\n---\n"
    cfg = train(tmp_path, reprompt=config.Reprompt(template=template))
    cfg = replace(cfg, model=config.Model(path="package:a|b\n# c"))
    fields, rest = parts(card(cfg, 1, 4, []))
    assert "| base model | package:a\\|b # c |" in rest and fields["library_name"] == "transformers"
    assert "\n`````json\n" in rest and rest.endswith("\n`````\n")


@pytest.mark.parametrize("name", ["sums", "me/", "me/su ms", "https://x/me/sums", "a/b/c", "../x"])
def test_a_wrong_name_of_a_repository_is_refused(name):
    with pytest.raises(UserError, match=r"checkpoint.push_to is .*: must be OWNER/NAME"):
        config.Checkpoint(push_to=name)
    with pytest.raises(UserError, match=r"^push_to is .*: must be OWNER/NAME"):
        config.Export(run="r", out="o", push_to=name)


def test_a_push_needs_an_export_and_a_training_of_one_value(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint.export is False: must be True with"):
        config.Checkpoint(push_to="me/sums", export=False)
    with pytest.raises(UserError, match=r"runs.a.checkpoint.push_to is 'me/sums': must be empty"):
        config.Sweep(out="x", runs={"a": train(tmp_path)})


@pytest.mark.heavy
def test_a_run_writes_its_card_and_pushes_what_it_exported(tmp_path, capsys):
    folder = tiny.model_folder(tmp_path / "tiny")
    pushed = {"export": True, "push_to": "me/sums", "push_private": False}
    cfg = runs.job(folder, tmp_path / "out", steps=2, checkpoint=pushed)
    model = tmp_path / "out" / "model"
    with runs.compiled_once():
        # The hub refuses: exit code 2, and everything is on the disk.
        with pushing.hub() as served, pytest.raises(UserError) as error:
            served.refuses = "/commit/"
            train_job.run(cfg)
        assert "not pushed: the hub refuses the token (403): it needs the right" in str(error.value)
        assert f"the model is whole in {model}: `hf upload me/sums {model}`" in str(error.value)
        assert (tmp_path / "out" / "evaluations.json").exists()
        # Without a token the same command with --resume has nothing to train, and says so.
        capsys.readouterr()
        with pushing.hub(given=None) as served:
            train_job.run(replace(cfg, resume=True))
        assert "hub: me/sums: not pushed: no token (HF_TOKEN" in capsys.readouterr().out
        assert not served.seen
        # With one it pushes.
        with pushing.hub() as served:
            train_job.run(replace(cfg, resume=True))
    assert f"hub: {model} is in {served.url}/me/sums" in capsys.readouterr().out
    assert served.created["visibility"] == "public" and served.message == "sdjax: step 2"
    assert served.files == {file.name: file.read_bytes() for file in model.iterdir()}
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= served.files.keys()
    fields, rest = parts(served.files["README.md"].decode())
    assert fields["tags"] == ["sdjax", "sdpo"] and "base_model" not in fields
    assert "| base model | tiny |" in rest and "64 training examples" in rest
    assert re.search(
        r"\| held out \| 4 \| avg@2, % \| \d.*\(.* to .*\) \| \d.*\(.* to .*\) \|", rest
    )


@pytest.mark.heavy
def test_an_owner_that_the_token_is_not_of_is_refused_before_anything_is_written(tmp_path):
    cfg = runs.job(tmp_path / "none", tmp_path / "out", checkpoint={"export": True})
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, push_to="you/sums"))
    with (
        pushing.hub(),
        pytest.raises(UserError, match="push_to is 'you/sums': the token is of me, lab"),
    ):
        train_job.run(cfg)
    assert not (tmp_path / "out").exists()
