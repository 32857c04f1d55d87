"""Updates that are not finite, and batches that teach nothing."""

import json
import shutil
from dataclasses import dataclass, replace

import marks
import numpy as np
import pytest
import runs
import tiny
from safetensors.numpy import load_file, save_file

from sdjax import config
from sdjax.data.pipeline import Batches
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, sft_job, study_job, train_job
from sdjax.models.files import weights
from sdjax.tasks import Task
from sdjax.tokenizer import Tokenizer
from sdjax.training import resume
from sdjax.training.host_step import Skips

pytestmark = pytest.mark.usefixtures("compiled_once")


@dataclass(frozen=True, kw_only=True)
class Poisoned(runs.Letters):
    """Letters with a reward, for the answers to some questions, that makes a loss infinite."""

    poisoned: tuple[str, ...] = ()
    system: str = ""
    long: tuple[str, ...] = ()
    """Examples whose system prompt has one more character."""


def load(cfg: Poisoned, data: config.Data) -> Task:
    task = runs.load(cfg, data)

    def grader(attempts):
        return [
            replace(grade, reward=1e300) if attempt.id in cfg.poisoned else grade
            for attempt, grade in zip(attempts, task.grader(attempts), strict=True)
        ]

    def said(examples):
        def system(e):
            return {"role": "system", "content": cfg.system + "x" * (e.id in cfg.long)}

        if not cfg.system:
            return examples
        return [replace(e, messages=(system(e), *e.messages)) for e in examples]

    return replace(task, grader=grader, train=said(task.train), held_out=said(task.held_out))


GRPO = {"loss": {"distillation": 0.0}}


def job(model, out, **changes):
    """Returns a run of three steps with a checkpoint after each."""
    few = {"steps": 3, "checkpoint": {"every": 1, "keep": 3}, "eval": {"every": 0}}
    return runs.job(model, out, **few | changes)


@pytest.fixture(scope="module")
def second_step():
    """Returns an example of the second step."""
    order = Batches(runs.load(runs.Letters(held_out=4), config.Data()).train, 4, 0)
    next(order)
    return next(order)[1].id


def replayed(model, out, file, capsys, **changes):
    """Returns the last two lines that --replay prints of a file."""
    cfg = job(model, out, **changes)
    train_job.run(replace(cfg, replay=str(file)))
    return capsys.readouterr().out.strip().splitlines()[-2:]


def test_an_update_without_numbers_is_skipped_counted_and_said_and_the_run_goes_on(
    model, tmp_path, second_step, capsys
):
    task = Poisoned(held_out=4, poisoned=(second_step,))
    train_job.run(job(model, tmp_path / "out", task=task, **GRPO))
    warned = [line for line in capsys.readouterr().out.splitlines() if "skipped:" in line]
    assert warned == [
        "warning: step 2: 1 of 1 updates skipped: loss or gradient not finite (--replay shows "
        "where, once optim.most_skipped in a row have ended the run)"
    ]
    metrics = runs.lines(tmp_path / "out" / "metrics.jsonl")
    assert [m["optim/skipped"] for m in metrics[1:]] == [0, 1, 0]
    assert [m["optim/skipped_total"] for m in metrics[1:]] == [0, 1, 1]
    assert metrics[2]["loss/total"] == "NaN" and np.isfinite(metrics[3]["loss/total"])
    before, after, later = (
        runs.arrays(tmp_path / "out" / "checkpoints" / str(step)) for step in (1, 2, 3)
    )
    for name, array in before.items():
        assert np.isfinite(later[name]).all()
        same = np.array_equal(array, after[name])
        assert same or "step" in name, name
    assert any(not np.array_equal(after[name], later[name]) for name in after if "params" in name)


@pytest.mark.heavy
def test_too_many_in_a_row_end_the_run_with_the_batch_to_look_at(
    model, tmp_path, second_step, capsys
):
    task = Poisoned(held_out=4, poisoned=(second_step,))
    changes = {"task": task, "optim": {"most_skipped": 1}, **GRPO}
    out = tmp_path / "out"
    file = out / "nonfinite" / "2.npz"
    with pytest.raises(UserError) as caught:
        train_job.run(job(model, out, **changes))
    said = str(caught.value)
    assert f"--replay {file}" in said and "step 2" in said and "\n" not in said
    assert "the checkpoint of step 1 is whole" in said
    assert [m["step"] for m in runs.lines(out / "metrics.jsonl")] == [0, 1, 2]

    numbers, first = replayed(model, out, file, capsys, **changes)
    assert numbers == "step 2  loss nan  gradient norm nan"
    assert first.startswith("not finite, first: the batch's samples.advantage at [")

    with np.load(file, allow_pickle=False) as arrays:
        mended = dict(arrays)
    mended["samples.advantage"] = np.nan_to_num(mended["samples.advantage"])
    np.savez(file, **mended)
    numbers, first = replayed(model, out, file, capsys, **changes)
    assert "nan" not in numbers and first == "not finite, first: nothing"


@pytest.mark.heavy
def test_a_model_that_has_blown_up_ends_the_run(model, tmp_path, capsys):
    out = tmp_path / "out"
    changes = {"optim": {"lr": 1e25, "most_skipped": 2, "minibatches": 4, "microbatch": 2}}
    with pytest.raises(UserError, match="not finite in 3 updates in a row"):
        train_job.run(job(model, out, **changes))
    (_, last) = runs.lines(out / "metrics.jsonl")
    assert (last["optim/skipped"], last["optim/skipped_total"]) == (0.75, 3)
    assert not (out / "model").exists()
    file = out / "nonfinite" / "1.npz"
    numbers, first = replayed(model, out, file, capsys, **changes)
    assert numbers.startswith("step 1  loss ") and numbers.endswith("gradient norm nan")
    assert first.startswith("not finite, first: the ")


def broken(source, folder, value):
    """Returns the model with one number of its last norm replaced."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if "model.norm.weight" in tensors:
            tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
            tensors["model.norm.weight"][0] = value
        save_file(tensors, file)
    return folder


def evaluation(model, out):
    return config.Evaluate(
        out=str(out), task=runs.Letters(held_out=4), model=model, eval=EVAL, max_prompt_tokens=96
    )


def study(model, out):
    return config.Study(
        out=str(out),
        task=runs.Letters(held_out=4),
        model=model,
        eval=EVAL,
        max_prompt_tokens=96,
        solved_max=2,
    )


def training(model, out):
    made = job(model.path, out, eval={"every": 1}, checkpoint={"every": 0, "export": True})
    return replace(made, model=model)


def finetuning(model, out):
    source = out.with_suffix(".jsonl")
    turns = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
    source.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    return config.SFT(
        out=str(out),
        source=str(source),
        model=model,
        batch=2,
        steps=5,
        log_every=2,
        max_tokens=96,
        max_prompt_tokens=96,
        optim=config.Optim(microbatch=2),
        checkpoint=config.Checkpoint(every=0),
        log=config.Log(progress=False, to=()),
    )


EVAL = config.Eval(k=2, examples=4, batch=4, max_completion_tokens=6)
JOBS = {
    evaluation: evaluate_job,
    study: study_job,
    training: train_job,
    finetuning: sft_job,
}


@pytest.mark.parametrize("value", marks.heavy_but([np.nan], [np.nan, np.inf]), ids=str)
@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.__name__)
def test_a_model_whose_logits_are_not_finite_is_an_error_of_every_job_and_leaves_no_result(
    model, tmp_path, kind, value, capsys
):
    source = config.Model(
        path=str(broken(model, tmp_path / "broken", value)), compute_dtype="float32", remat="none"
    )
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        JOBS[kind].run(kind(source, out))
    said = str(caught.value)
    assert "\n" not in said and "not finite" in said
    if kind is finetuning:
        assert said.startswith("update 5: loss or gradient not finite in 5 updates in a row; ")
        last = runs.lines(out / "metrics.jsonl")[-1]
        assert (last["optim/skipped_total"], last["sft/token_accuracy"]) == (5, "NaN")
        assert "warning: step 2: 2 of 2 updates skipped" in capsys.readouterr().out
    else:
        assert "at token 0 of completion" in said and "model.path" in said
    written = {file.name for file in out.rglob("*") if file.is_file() and file.stat().st_size}
    records = {"config.json", "run.json", "metrics.jsonl", "warnings.jsonl", "log.txt"}
    assert written <= records, written


@pytest.mark.parametrize(
    ("most", "ended", "total"), [(1, True, 4), (2, True, 6), (3, False, 6), (0, False, 6)]
)
def test_the_updates_of_a_finetuning_end_it_at_the_first_long_enough_row(most, ended, total):
    skipped = [False, True, False, True, True, False]
    skips, ends = sft_job._counted(Skips(total=3), skipped, most, 100, 6)
    assert (ends, skips.total) == (ended, total)


def test_a_run_of_which_every_update_is_skipped_ends_without_a_model(model, tmp_path):
    everyone = tuple(f"train-{i}" for i in range(64))
    task = Poisoned(held_out=4, poisoned=everyone)
    changes = {"checkpoint": {"every": 0, "export": True}, "steps": 2, **GRPO}
    with pytest.raises(UserError, match="step 2: loss or gradient not finite in 2 updates"):
        train_job.run(job(model, tmp_path / "out", task=task, optim={"most_skipped": 0}, **changes))
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "bfloat16"), (1e5, "float16")])
def test_parameters_that_are_not_finite_are_not_exported(model, tmp_path, value, dtype):
    folder = broken(model, tmp_path / "broken", value)
    cfg = weights.read_config(folder, compute_dtype="float32")
    params = weights.load(folder, cfg)
    with pytest.raises(UserError, match=f"export to .*norm.* hold NaN or infinity as {dtype}"):
        weights.export(params, cfg, folder, tmp_path / "model", dtype=dtype)
    assert not list(tmp_path.glob("model*"))


def unseen(model, folder):
    """Returns a model with a NaN that no logit sees: in the embedding of a token nobody writes."""
    shutil.copytree(model, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if "model.embed_tokens.weight" in tensors:
            table = tensors["model.embed_tokens.weight"].copy()
            table[-1] = np.nan
            save_file(tensors | {"model.embed_tokens.weight": table}, file)
    return folder


@pytest.mark.heavy
def test_parameters_that_are_not_finite_are_neither_saved_nor_gone_on_from(
    model, tmp_path, monkeypatch
):
    out, broken_model = tmp_path / "out", unseen(model, tmp_path / "unseen")
    with pytest.raises(UserError) as caught:
        train_job.run(job(broken_model, out))
    said = str(caught.value)
    assert said.startswith("step 1: the parameters hold NaN or infinity (in embedding"), said
    assert "there is no checkpoint yet" in said and "\n" not in said
    assert not [folder for folder in (out / "checkpoints").glob("*") if folder.name.isdigit()]
    # An earlier version kept such a checkpoint.
    with monkeypatch.context() as patch:
        patch.setattr(resume.tensors, "not_finite", lambda params: [])
        train_job.run(job(broken_model, tmp_path / "old", steps=1))
    with pytest.raises(UserError) as caught:
        train_job.run(job(broken_model, tmp_path / "old", resume=True))
    said = str(caught.value)
    assert said.startswith(f"checkpoint {tmp_path}/old/checkpoints/1: its parameters hold NaN")
    assert "choose another --out" in said and "\n" not in said


@pytest.mark.heavy
def test_a_run_that_goes_on_counts_on(model, tmp_path, second_step):
    task = Poisoned(held_out=4, poisoned=(second_step,))
    out = tmp_path / "out"
    train_job.run(job(model, out, task=task, steps=2, **GRPO))
    train_job.run(job(model, out, task=task, resume=True, **GRPO))
    assert runs.lines(out / "metrics.jsonl")[-1]["optim/skipped_total"] == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"no zip file", "not a batch"), ("empty", "not a batch")],
)
def test_what_is_no_saved_batch_is_named(model, tmp_path, content, why):
    file = tmp_path / "1.npz"
    if content == "empty":
        np.savez(file, tokens=np.zeros(3))
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"replay is '{file}': {why}"):
        train_job.run(job(model, tmp_path / "out", replay=str(file)))


def mute(source, folder):
    """Returns a model that ends every completion with its first token."""
    fields = json.loads((source / "config.json").read_text())
    tiny.model_folder(folder, **{k: fields[k] for k in ("num_hidden_layers",)})
    # The final norm leaves one coordinate. Whatever its sign, one of the two stop tokens wins.
    head = np.zeros((tiny.VOCABULARY, 32), np.float32)
    head[2, 0], head[0, 0] = 1e4, -1e4
    changed = {"model.norm.weight": np.eye(1, 32, dtype=np.float32)[0], "lm_head.weight": head}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: changed.get(name, array) for name, array in tensors.items()}, file)
    return folder


@pytest.mark.heavy
def test_completions_that_are_all_empty_teach_nothing_and_are_counted(model, tmp_path):
    silent = mute(model, tmp_path / "mute")
    train_job.run(job(silent, tmp_path / "out", steps=1))
    last = runs.lines(tmp_path / "out" / "metrics.jsonl")[-1]
    assert last["rollout/empty"] == 1.0 and last["rollout/length"] == 1.0
    # By the threshold they succeed, but an empty completion shows nothing.
    assert last["reprompt/success_group_fraction"] == 1.0
    assert last["reprompt/demonstration_group_fraction"] == 0.0
    assert last["reprompt/masked_fraction"] == 1.0
    assert last["loss/total"] == 0.0 and last["optim/skipped"] == 0.0
    rows = runs.lines(tmp_path / "out" / "rollouts.jsonl")
    assert len(rows) == 8 and all(row["completion"] == "" for row in rows)


@pytest.mark.heavy
def test_a_prompt_as_long_as_the_context_allows_is_trained_on_and_a_longer_one_is_counted(
    model, tmp_path, capsys
):
    # Each byte is a token. Of the 512 positions, 6 are for the completion.
    longest = {
        "rollout": {"max_prompt_tokens": 506},
        "reprompt": {"max_tokens": 506},
        "loss": {"distillation": 0.5},
        "steps": 1,
    }

    tokenizer = Tokenizer.load(str(model))

    def task(length):
        """Returns a task whose prompts have `length` tokens; one of them has one more."""
        one = load(Poisoned(held_out=4, system="x"), config.Data()).train[0]
        tokens = len(tokenizer.encode_prompt(one.messages, enable_thinking=None))
        return Poisoned(held_out=4, system="x" * (1 + length - tokens), long=("train-5",))

    train_job.run(job(model, tmp_path / "out", task=task(506), **longest))
    assert "63 training examples (1 over 506 prompt tokens left out)" in capsys.readouterr().out
    rows = runs.lines(tmp_path / "out" / "rollouts.jsonl")
    # The log has control tokens as text, which `encode` takes for words.
    written = [tokenizer.base.encode(row["prompt"], add_special_tokens=False) for row in rows]
    assert {len(ids) for ids in written} == {506}
    last = runs.lines(tmp_path / "out" / "metrics.jsonl")[-1]
    # A demonstration does not fit, so only the policy part of the loss learns.
    assert last["reprompt/dropped_fraction"] == 1.0 and last["optim/grad_norm"] > 0
    with pytest.raises(UserError, match="every one of the 64 prompts is longer"):
        train_job.run(job(model, tmp_path / "longer", task=task(507), **longest))
    with pytest.raises(UserError, match=r"rollout.max_prompt_tokens is 507: .* context of 512"):
        train_job.run(
            job(model, tmp_path / "no", **longest | {"rollout": {"max_prompt_tokens": 507}})
        )
