"""Whole runs of the train job on a tiny model: files, compiled programs, export."""

import json
from dataclasses import replace

import numpy as np
import pushing
import pytest
import runs
import tiny
from calls import Calls
from runs import lines
from sums import SUMS, job

from sdjax import config
from sdjax.analysis import trace
from sdjax.jobs import evaluate_job, export_job, train_job
from sdjax.training import host_step, loaded_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """Returns the directory of a finished SDPO run and the jitted functions that it called."""
    out = tmp_path_factory.mktemp("run") / "sdpo"
    called = {}
    make_steps, make_sampler = host_step.make_steps, loaded_model.samplers.make

    def steps(*args):
        made = make_steps(*args)
        called.update(train=Calls(made.train), after=Calls(made.after))
        return replace(made, **{k: called[k] for k in ("train", "after")})

    def sampler(*args, **kwargs):
        made = make_sampler(*args, **kwargs)
        programs = {name: Calls(program) for name, program in vars(made.programs).items()}
        called.update(weights=Calls(made.weights), **programs)
        programs = replace(made.programs, **programs)
        return replace(made, weights=called["weights"], programs=programs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_step, "make_steps", steps)
        patch.setattr(loaded_model.samplers, "make", sampler)
        train_job.run(job(model, out, steps=5, profile=str(out / "profile")))
    return out, called


def test_a_run_writes_metrics_rollouts_evaluations_checkpoints_and_a_model(finished):
    out, _ = finished
    metrics = lines(out / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4, 5]
    assert all(np.isfinite(m["loss/total"]) and m["optim/grad_norm"] > 0 for m in metrics[1:])
    assert [m["step"] for m in metrics if "eval/avg@2" in m] == [0, 2, 4, 5]
    rollouts = lines(out / "rollouts.jsonl")
    assert len(rollouts) == 5 * 4 * 4
    for r in rollouts:
        assert len(r["tokens"]) == len(r["sampler_logprobs"]) == len(r["teacher_logprobs"])
        assert r["prompt"] != r["reprompt"] and "Correct solution:" in r["reprompt"]
        np.testing.assert_allclose(r["student_logprobs"], r["sampler_logprobs"], atol=2e-4)
        assert len(r["pieces"]) == r["length"] == len(r["tokens"])
    assert any(r.get("student_top") for r in rollouts)
    assert (out / "config.json").exists() and (out / "evaluations.json").exists()
    (board,) = (out / "tensorboard").iterdir()
    assert b"_hparams_/session_start_info" in board.read_bytes()
    assert board.read_bytes().count(b"samples/3/text_summary") == 4
    assert {p.name for p in (out / "checkpoints").iterdir()} >= {"4", "5"}
    assert (out / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reprompt": {"demonstration": "solution"}}, "none of the 64 training examples has a"),
        ({"loss": {"divergence": "top_k", "top_k": 999}}, "loss.top_k is 999: .* has 264 tokens"),
        ({"log": {"alternatives": 999}}, "log.alternatives is 999: .* has 264 tokens"),
    ],
)
def test_what_cannot_teach_is_refused_before_anything_is_written(model, tmp_path, changes, said):
    with pytest.raises(config.UserError, match=said):
        train_job.run(runs.job(model, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_no_function_compiles_twice_for_one_shape(finished):
    _, called = finished
    assert set(called) >= {"train", "after", "weights", "prefill", "insert", "decode"}
    for name, calls in called.items():
        assert calls.function._cache_size() == len(calls.shapes), name
    assert len(called["after"].shapes) == len(called["weights"].shapes) == 1
    # Evaluation and training sample different shapes.
    assert 1 <= len(called["decode"].shapes) <= 3 and 1 <= len(called["train"].shapes) <= 3


def test_decode_weights_are_made_once_for_each_state_of_the_parameters(finished):
    _, called = finished
    assert called["train"].count == 5 and called["weights"].count == 1 + 5


def test_a_step_after_the_first_checkpoint_compiles_nothing(finished):
    _, called = finished
    train = called["train"]
    # All completions fall into one bucket of lengths, and all prompts into one.
    assert len(train.compiled) == 5 and len(train.shapes) == 1
    # The first checkpoint, at step 2, compiles the check that its parameters are finite.
    later = {n for calls in called.values() for n in calls.compiled if n >= train.compiled[2]}
    assert later == {train.compiled[-1]}


def test_a_profile_is_one_trace_of_the_run(finished):
    out, _ = finished
    assert len(list((out / "profile").glob("**/*.xplane.pb"))) == 1
    assert trace.read(out / "profile").devices == 0


def test_the_exported_model_scores_as_the_trained_one(finished, tmp_path):
    out, _ = finished
    cfg = job(out / "model", tmp_path)
    evaluate_job.run(
        config.Evaluate(
            out=str(tmp_path / "again"),
            task=SUMS,
            model=cfg.model,
            max_prompt_tokens=300,
            eval=cfg.eval,
        )
    )
    scores = json.loads((tmp_path / "again" / "scores.json").read_text())
    last = json.loads((out / "evaluations.json").read_text())[-1]
    # Export rounds to bfloat16, so tokens may differ, but lengths hardly differ.
    assert abs(scores["lengths"]["mean"] - last["lengths"]["mean"]) < 2
    assert len(lines(tmp_path / "again" / "answers.jsonl")) == 6 * 2


def test_a_checkpoint_exports_to_the_bytes_of_the_run_s_own_export(finished, tmp_path):
    out, _ = finished
    export_job.run(config.Export(run=str(out), out=str(tmp_path / "model")))
    for file in (out / "model").iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_export_is_pushed_with_the_card_of_its_step(finished, tmp_path, capsys):
    out, _ = finished
    model = tmp_path / "model"
    export = config.Export(run=str(out), out=str(model), step=4, push_to="me/sums")
    with pushing.hub() as served:
        with pytest.raises(config.UserError, match=r"^push_to is .you/sums.: the token is of me"):
            export_job.run(replace(export, push_to="you/sums"))
        assert not model.exists()
        export_job.run(export)
    assert f"hub: {model} is in {served.url}/me/sums" in capsys.readouterr().out
    assert served.files == {file.name: file.read_bytes() for file in model.iterdir()}
    card = served.files["README.md"].decode()
    assert ": 20 training examples |" in card and "| steps | 4 of " in card
    assert "| set | questions | figure | step 0 | step 4 |" in card


@pytest.mark.slow
def test_packed_rows_change_no_record_of_a_run(model, tmp_path):
    for name, row_tokens in (("alone", 0), ("packed", 1000)):
        packing = {"microbatch": 4, "row_tokens": row_tokens}
        train_job.run(job(model, tmp_path / name, steps=1, optim=packing))
    alone, packed = (lines(tmp_path / name / "rollouts.jsonl") for name in ("alone", "packed"))
    for a, b in zip(alone, packed, strict=True):
        for kind in ("student_logprobs", "teacher_logprobs"):
            # rollouts.jsonl has four decimals.
            np.testing.assert_allclose(b.pop(kind), a.pop(kind), atol=1.01e-4)
        assert a == b
    alone, packed = (lines(tmp_path / name / "metrics.jsonl")[-1] for name in ("alone", "packed"))
    assert packed["update/padding"] < alone["update/padding"]
    # Samples after the update may differ, because its parameters round differently.
    other = ("time/", "rollout/tokens_per_s", "update/padding", "eval/")
    for name in alone:
        if not name.startswith(other):
            np.testing.assert_allclose(packed[name], alone[name], rtol=1e-4, atol=1e-6)


def test_a_directory_that_holds_a_run_is_not_overwritten(finished, model):
    out, _ = finished
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(config.UserError, match="holds a run; pass --resume"):
        train_job.run(job(model, out))
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.heavy
def test_a_model_without_successes_learns_nothing_and_says_so(model, tmp_path):
    train_job.run(job(model, tmp_path / "none", steps=1, reprompt={"success_threshold": 2.0}))
    last = lines(tmp_path / "none" / "metrics.jsonl")[-1]
    assert last["reprompt/masked_fraction"] == 1.0
    assert last["loss/total"] == 0.0 and last["optim/grad_norm"] == 0.0
    assert all(r["student_logprobs"] is None for r in lines(tmp_path / "none" / "rollouts.jsonl"))
