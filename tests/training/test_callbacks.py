"""The user's functions end a run as its last step does, and their mistakes are named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import runs
import tiny

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import sft_job, train_job
from sdjax.training.callbacks import Callbacks


def asked(answer, name="on_step"):
    cfg = config.Train(out="x", task=config.TaskConfig(), **{name: lambda step, metrics: answer})
    callbacks = Callbacks(cfg=cfg)
    return callbacks.end_run(name, 3, {"rollout/reward": np.float32(0.5)}), callbacks.ended_by


@pytest.mark.parametrize("name", ["on_step", "on_evaluation"])
@pytest.mark.parametrize("answer", [True, "stop", np.True_])
def test_a_function_ends_the_run(name, answer):
    assert asked(answer, name) == (True, name)


@pytest.mark.parametrize("answer", [None, False, np.False_])
def test_a_function_lets_the_run_go_on(answer):
    assert asked(answer) == (False, "")


@pytest.mark.parametrize("answer", ["halt", 1, 0, {}])
def test_an_answer_of_another_kind_is_refused(answer):
    with pytest.raises(UserError, match=r"on_step returned .* after step 3: return True or 'stop'"):
        asked(answer)


def test_a_run_without_functions_goes_on():
    callbacks = Callbacks(cfg=config.Train(out="x", task=config.TaskConfig()))
    assert not callbacks.end_run("on_step", 1, {}) and callbacks.ended_by == ""


def test_what_a_function_raises_is_one_line_with_its_place():
    def on_step(step, metrics):
        return metrics["no/such"] > 1

    cfg = config.Train(out="x", task=config.TaskConfig(), on_step=on_step)
    with pytest.raises(
        UserError,
        match=r"on_step raised KeyError after step 1: 'no/such' \(.*test_callbacks.py:\d+\): mend",
    ):
        Callbacks(cfg=cfg).end_run("on_step", 1, {})


def test_a_function_gets_floats_and_cannot_change_the_metrics():
    metrics, seen = {"a": np.float32(0.5)}, []

    def on_step(step, given):
        seen.append((step, dict(given), type(given["a"])))
        given.clear()

    cfg = config.Train(out="x", task=config.TaskConfig(), on_step=on_step)
    Callbacks(cfg=cfg).end_run("on_step", 2, metrics)
    assert seen == [(2, {"a": 0.5}, float)] and metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.heavy
def test_a_training_that_a_function_ends_is_whole_and_can_go_on(model, tmp_path, capsys):
    seen = []

    def on_step(step, metrics):
        return "stop" if step == 3 else None

    def on_evaluation(step, metrics):
        seen.append(step)
        return step == 4 and metrics["eval/length"] > 0

    cfg = runs.job(
        model, tmp_path / "out", on_step=on_step, checkpoint={"export": True, "every": 5}
    )
    with runs.compiled_once():
        train_job.run(cfg)
        said = capsys.readouterr().out
        assert "stopped by on_step after step 3 of 6" in said and "| before |" in said
        assert said.count("step 1, train-") >= 1 and "step 2, train-" not in said
        # Step 3 has no evaluation and no checkpoint of its own, but it is the last one now.
        steps = [line["step"] for line in runs.lines(tmp_path / "out" / "metrics.jsonl")]
        assert steps == [0, 1, 2, 3]
        assert "eval/length" in runs.lines(tmp_path / "out" / "metrics.jsonl")[-1]
        assert (tmp_path / "out" / "checkpoints" / "3").exists()
        assert (tmp_path / "out" / "model" / "config.json").exists()
        record = json.loads((tmp_path / "out" / "config.json").read_text())
        assert record["on_step"].startswith("test_callbacks:") and record["on_step"].endswith(
            "on_step"
        )
        train_job.run(replace(cfg, resume=True, on_step=None, on_evaluation=on_evaluation))
    assert "stopped by on_evaluation after step 4 of 6" in capsys.readouterr().out
    assert seen == [4] and (tmp_path / "out" / "checkpoints" / "4").exists()


@pytest.mark.heavy
def test_a_finetuning_that_a_function_ends_is_whole(model, tmp_path, capsys):
    rows = [{"prompt": f"{a} + 1?", "completion": f"so {a + 1}"} for a in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft_job.run(
        config.SFT(
            out=str(tmp_path / "out"),
            source=str(tmp_path / "rows.jsonl"),
            steps=5,
            batch=2,
            log_every=1,
            max_tokens=100,
            model=config.Model(path=str(model), compute_dtype="float32", remat="none"),
            optim=config.Optim(microbatch=2),
            log=config.Log(progress=False, to=()),
            on_step=lambda step, metrics: step == 2 and metrics["sft/loss"] > 0,
        )
    )
    assert "stopped by on_step after step 2 of 5" in capsys.readouterr().out
    assert [line["step"] for line in runs.lines(tmp_path / "out" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "out" / "checkpoints" / "2").exists()
    assert (tmp_path / "out" / "model" / "config.json").exists()
