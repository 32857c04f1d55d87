"""Tasks of lm-evaluation-harness: the library's own tasks and scores, on the sampler."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import runs
import sums
import tiny

from sdjax import config, main
from sdjax.analysis import accuracy
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, train_job
from sdjax.training import lm_tasks

pytestmark = pytest.mark.usefixtures("compiled_once")

CHOICES = """
task: made_choice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITES = """
task: made_answers
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
TEXTS = """
task: made_texts
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
ROWS = [
    {"question": f"Which is {word}?", "choices": ["a stone", word, "x"], "answer": i % 3}
    for i, word in enumerate(("red", "warm", "made of wood", "far"))
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Returns the YAML files of three tasks whose rows are in a local file."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    names = []
    for name, text in (("choice", CHOICES), ("answers", WRITES), ("texts", TEXTS)):
        names.append(tmp_path / f"{name}.yaml")
        names[-1].write_text(text.replace("ROWS", str(rows)))
    return tuple(map(str, names))


def alone(model, out, *names, **changes):
    """Returns an evaluation of nothing but tasks of the harness."""
    return config.Evaluate(
        out=str(out),
        model=config.Model(path=str(model), compute_dtype="float32"),
        max_prompt_tokens=400,
        eval=config.Eval(every=0, max_completion_tokens=8),
        lm_eval=config.Harness(tasks=names, **changes),
    )


def hugging_face(folder):
    """Returns lm_eval's own model of a folder, in float32."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=512)


@pytest.mark.heavy
@pytest.mark.parametrize("chat", [True, False])
def test_figures_and_answers_are_those_of_lm_eval_s_own_model(model, files, tmp_path, chat):
    theirs = hugging_face(model)
    from lm_eval import simple_evaluate

    evaluate_job.run(alone(model, tmp_path / "run", *files, chat_template=chat))
    found = json.loads((tmp_path / "run" / "scores.json").read_text())["lm_eval"]
    for name, task in zip(files, found, strict=True):
        manager = lm_tasks._manager(own=True)
        wanted = simple_evaluate(
            model=theirs,
            tasks=[name],
            apply_chat_template=chat,
            bootstrap_iters=lm_tasks.DRAWS,
            task_manager=manager,
        )
        expected = lm_tasks.figures_of(wanted)[task]
        assert found[task]["documents"] == len(ROWS)
        assert found[task]["metrics"].keys() == expected["metrics"].keys() != set()
        for metric, value in expected["metrics"].items():
            measured = found[task]["metrics"][metric]
            assert measured == {
                end: None if x is None else pytest.approx(x, rel=1e-5) for end, x in value.items()
            }
        stem = name.rpartition("/")[2].removesuffix(".yaml")
        rows = runs.lines(tmp_path / "run" / "lm_eval" / f"{stem}.jsonl")
        for ours, row in zip(rows, wanted["samples"][task], strict=True):
            assert ours["arguments"] == json.loads(json.dumps(row["arguments"]))
            for one, other in zip(flat(ours["resps"]), flat(row["resps"]), strict=True):
                known = one if isinstance(one, str | bool) else pytest.approx(one, rel=1e-5)
                assert other == known


def flat(value):
    """Yields the texts, numbers and truth values in nested lists."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from flat(inner)
    else:
        yield value


@pytest.mark.heavy
def test_requests_at_the_edges_are_answered_as_by_lm_eval_s_own_model(tmp_path):
    pytest.importorskip("lm_eval")
    folder = tiny.model_folder(tmp_path / "m", "llama", tie_word_embeddings=True)
    theirs = hugging_face(folder)
    from lm_eval.api.instance import Instance

    from sdjax.training.lm_adapter import HarnessModel

    ours = HarnessModel.create_from_arg_string(f"path={folder},compute_dtype=float32")

    def both(kind, *arguments):
        requests = [
            Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
        ]
        return [getattr(one, kind)(requests) for one in (ours, theirs)]

    # An empty context, a space at its end, more than the model reads, and a long continuation.
    found, wanted = both(
        "loglikelihood",
        *[("2 + 2 = ", "4"), ("", "hello"), ("x" * 700, " long"), ("a", " c" * 40)],
    )
    assert [g for _, g in found] == [g for _, g in wanted]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in wanted], rel=1e-5)
    found, wanted = both("loglikelihood_rolling", ("word " * 300,), ("short",))
    assert found == pytest.approx(wanted, rel=1e-5)
    greedy = {"max_gen_toks": 24, "do_sample": False}
    found, wanted = both(
        "generate_until",
        ("Hello", {"until": ["e"], **greedy}),
        ("y" * 600, {"until": [], **greedy}),
        ("Tell me", {"until": ["\n", "P"], **greedy}),
    )
    assert found == wanted
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes, "}]
    for turns, prompt in ((said[:1], True), (said, False)):
        text = ours.apply_chat_template(turns, prompt)
        assert text == theirs.apply_chat_template(turns, prompt)
    with pytest.raises(UserError, match=r"asks for repetition_penalty 1.3, which the sampler"):
        both("generate_until", ("a", {"until": [], "repetition_penalty": 1.3, **greedy}))
    with pytest.raises(UserError, match=r"completions of 512 tokens: the model's context has 512"):
        both("generate_until", ("a", {"until": [], "max_gen_toks": 512}))


@pytest.mark.heavy
def test_an_evaluation_has_them_beside_its_own_task_and_scores_each_once(
    model, files, tmp_path, capsys
):
    job = replace(
        sums.evaluation(model, tmp_path / "run", out_of_domain={}),
        lm_eval=config.Harness(tasks=files[:1], limit=3),
    )
    evaluate_job.run(job)
    table = (tmp_path / "run" / "scores.md").read_text()
    assert "| lm_eval | metric | value (95% interval) | documents |" in table
    assert "| made_choice | acc |" in table and table in capsys.readouterr().out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["accuracy"]["examples"] == 7
    assert scores["lm_eval"]["made_choice"]["documents"] == 3
    assert len(runs.lines(tmp_path / "run" / "lm_eval" / "choice.jsonl")) == 3
    with pytest.raises(UserError, match=r"made with other fields: .*lm_eval\.limit 3 -> 0"):
        evaluate_job.run(replace(job, resume=True, lm_eval=config.Harness(tasks=files[:2])))
    more = replace(job, resume=True, lm_eval=config.Harness(tasks=files[:2], limit=3))
    evaluate_job.run(replace(more, allow=("lm_eval.tasks",)))
    assert "lm_eval: " + files[0] not in capsys.readouterr().out
    after = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert after["lm_eval"]["made_choice"] == scores["lm_eval"]["made_choice"]
    assert after["lm_eval"]["made_answers"]["documents"] == 3


@pytest.mark.heavy
def test_the_evaluation_s_own_sampling_can_replace_the_task_s(model, files, tmp_path):
    job = alone(model, tmp_path / "run", files[1], sampling="eval")
    evaluate_job.run(replace(job, eval=replace(job.eval, temperature=1.0, seed=1)))
    evaluate_job.run(replace(job, out=str(tmp_path / "other"), eval=replace(job.eval, seed=2)))
    texts = []
    for run in ("run", "other"):
        rows = runs.lines(tmp_path / run / "lm_eval" / "answers.jsonl")
        assert all(row["arguments"][0][1]["max_gen_toks"] == 8 for row in rows)
        texts.append([row["resps"] for row in rows])
    assert texts[0] != texts[1]


@pytest.mark.heavy
def test_a_training_logs_them_at_every_evaluation(model, files, tmp_path, capsys):
    job = runs.job(model, tmp_path / "run", lm_eval=config.Harness(tasks=files[:1]))
    train_job.run(replace(job, steps=2))
    metrics = runs.lines(tmp_path / "run" / "metrics.jsonl")
    logged = [m["lm_eval/made_choice/acc"] for m in metrics if "lm_eval/made_choice/acc" in m]
    history = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    kept = [h["lm_eval"]["made_choice"]["metrics"]["acc"]["value"] for h in history]
    assert logged == kept and len(kept) == 2
    assert "made_choice acc" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_task_that_lm_eval_does_not_have_is_one_line(model, files, tmp_path):
    for name, says in (
        ("nowhere.yaml", "'nowhere.yaml': KeyError"),
        (str(tmp_path / "rows.jsonl") + ".yaml", "rows.jsonl.yaml': KeyError"),
    ):
        with pytest.raises(UserError, match=says) as error:
            evaluate_job.run(alone(model, tmp_path / "run", name))
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_without_the_library_the_line_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    lm_tasks._manager.cache_clear()
    with pytest.raises(UserError, match=r"lm_eval.tasks needs .*: pip install 'sdjax\[lm-eval\]'"):
        evaluate_job.run(alone(model, tmp_path / "run", "ifeval"))
    assert not (tmp_path / "run").exists()


CONFIG = """
from sdjax.config import Evaluate, Harness, Model
config = Evaluate(out="OUT", model=Model(path="MODEL"), lm_eval=Harness(tasks=("ifeval",)))
"""


@pytest.mark.parametrize(
    ("edit", "args", "says"),
    [
        (('("ifeval",)', "()"), [], "task is None: name a task, or tasks of"),
        (('("ifeval",)', "('a', 'a')"), [], "lm_eval.tasks is ('a', 'a'): name each task once"),
        (('("ifeval",)', "('',)"), [], "lm_eval.tasks is ('',): a name is empty"),
        (("", ""), ["--lm_eval.limit", "-1"], "lm_eval.limit is -1: must not be negative"),
        (("", ""), ["--lm_eval.fewshot", "-1"], "lm_eval.fewshot is -1: must not be negative"),
        (("", ""), ["--server.url", "http://127.0.0.1:1"], "needs the local sampler"),
    ],
)
def test_a_mistake_about_them_is_one_line_and_code_2(model, tmp_path, capsys, edit, args, says):
    text = CONFIG.replace("OUT", str(tmp_path / "run")).replace("MODEL", str(model))
    (tmp_path / "c.py").write_text(text.replace(*edit))
    assert main.main(["--config", str(tmp_path / "c.py"), *args]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


RESULTS = {
    "results": {
        "made": {
            "alias": "made",
            "acc,none": 0.25,
            "acc_stderr,none": 0.1,
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": "N/A",
            "bleu,none": 20.0,
            "bleu_stderr,none": 1.0,
        }
    },
    "samples": {"made": [{"filter": "none", "acc": float(i == 1), "bleu": [i]} for i in range(4)]},
    "n-samples": {"made": {"original": 9, "effective": 4}},
}


def test_figures_have_an_interval_and_the_number_of_documents():
    figures = lm_tasks.figures_of(RESULTS)
    shares = accuracy.intervals(np.array([[0.0, 1.0, 0.0, 0.0]]))[0]
    assert 0 < shares.low < 0.25 < shares.high < 1
    assert figures == {
        "made": {
            "documents": 4,
            "metrics": {
                "acc": {"value": 0.25, "low": shares.low, "high": shares.high},
                "exact_match/strict-match": {"value": 0.5, "low": None, "high": None},
                "bleu": {"value": 20.0, "low": pytest.approx(18.04), "high": pytest.approx(21.96)},
            },
        }
    }
    assert lm_tasks.metrics(figures) == {
        "lm_eval/made/acc": 0.25,
        "lm_eval/made/exact_match/strict-match": 0.5,
        "lm_eval/made/bleu": 20.0,
    }
    assert lm_tasks.to_markdown(figures).splitlines()[2:] == [
        f"| made | acc | 0.2500 ({shares.low:.4f} to {shares.high:.4f}) | 4 |",
        "| made | exact_match/strict-match | 0.5000 | 4 |",
        "| made | bleu | 20.0000 (18.0400 to 21.9600) | 4 |",
    ]


def test_a_share_of_0_has_an_interval_with_a_width():
    rows = [{"filter": "none", "acc": False}] * 4
    results = {"results": {"made": {"acc,none": 0.0}}, "samples": {"made": rows}}
    found = lm_tasks.figures_of(results)["made"]["metrics"]["acc"]
    assert found["low"] == 0 and 0.5 < found["high"] < 0.7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(value):
    results = {"results": {"made": {"word_perplexity,none": value}}}
    with pytest.raises(UserError, match="word_perplexity of made is"):
        lm_tasks.figures_of(results)


@pytest.mark.parametrize(
    ("context", "text", "answer"),
    [
        ("Q", "It is 18. Question: 2", "It is 18. "),
        ("Q", "<think>9? No.</think>  It is 18. Question: 2", "It is 18. "),
        ("Q<think>\n", "9? Question: no.</think>It is 18.", "It is 18."),
        ("Q", "<think>9, perhaps 18", ""),
        ("Q<think>\n", "9, perhaps 18", ""),
        ("<think>old</think> Q", "It is 18.", "It is 18."),
    ],
)
def test_an_answer_stands_after_the_thought_and_a_cut_thought_has_none(context, text, answer):
    from sdjax.training import lm_adapter

    assert lm_adapter._answer(context, text, ["Question:"]) == answer
