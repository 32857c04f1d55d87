"""SDPO with a regenerated solution: what the model answers, and what the teachers then read."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import runs

from sdjax import config
from sdjax.jobs import train_job
from sdjax.records import Completion, Example, Grade, Group, Sampled
from sdjax.rollout.collect import SampledGroups
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.tokenizer import Tokenizer
from sdjax.training import host_step, regeneration

STEPS, PROMPTS, THRESHOLD = 4, 4, 0.9


@pytest.fixture(scope="module")
def steps(model, tmp_path_factory):
    """Returns the regeneration, the rows of the groups and the metrics of each step of a run."""
    out = tmp_path_factory.mktemp("run") / "out"
    asked, collect = [], regeneration.collect

    def spied(*args, **kwargs):
        answers = collect(*args, **kwargs)
        asked.append((vars(args[2]) | kwargs, answers))
        return answers

    with runs.compiled_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(regeneration, "collect", spied)
        train_job.run(
            runs.job(
                model,
                out,
                steps=STEPS,
                reprompt={"regenerate": True, "success_threshold": THRESHOLD},
                eval={"every": 0, "k": 1, "examples": 1, "batch": 1},
                checkpoint={"every": 0},
            )
        )
    rows = runs.lines(out / "rollouts.jsonl")
    pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    groups = [pairs[i : i + PROMPTS] for i in range(0, len(pairs), PROMPTS)]
    return list(zip(asked, groups, runs.lines(out / "metrics.jsonl")[1:], strict=True))


@pytest.mark.heavy
def test_teachers_read_the_new_answer_where_it_is_right_and_else_nothing(steps, model):
    tokenizer = Tokenizer.load(model)
    seen = []
    for (_, answers), groups, metrics in steps:
        right = []
        for answer, group in zip(answers, groups, strict=True):
            demonstrated = any(row["reward"] >= THRESHOLD for row in group)
            right += [answer.grades[0].reward >= THRESHOLD] * demonstrated
            taught = demonstrated and right[-1]
            seen.append((demonstrated, taught))
            asked = config.Reprompt()
            text = answer.completions[0].text
            expected = reprompt.messages(answer.example, [text] * taught, "", asked)
            for row in group:
                assert row["reprompt"] == tokenizer.decode_raw(tokenizer.encode_prompt(expected))
                assert row["demonstration"] == ("regenerated" if taught else None)
                assert row["distilled"] == taught
        assert metrics["reprompt/regenerated"] == sum(right) / len(right)
        assert metrics["reprompt/demonstration_group_fraction"] == sum(right) / PROMPTS
    assert set(seen) == {(False, False), (True, False), (True, True)}


@pytest.mark.heavy
def test_a_group_answers_what_its_first_teacher_reads_of_a_sibling(steps, model):
    tokenizer = Tokenizer.load(model)
    for (call, _), groups, _ in steps:
        for prompt, group in zip(call["prompts"], groups, strict=True):
            good = [row["completion"] for row in group if row["reward"] >= THRESHOLD]
            first = good[1:] or good  # of two right ones the first reads the second
            assert not first or first[0] in tokenizer.decode_raw(prompt)


@pytest.mark.heavy
def test_each_step_asks_as_many_and_samples_as_the_rollout_does(steps):
    calls = [call for (call, _), *_ in steps]
    assert [len(call["prompts"]) for call in calls] == [PROMPTS] * STEPS
    assert {call["sampling"] for call in calls} == {
        config.Rollout(
            prompts_per_step=PROMPTS,
            group_size=2,
            temperature=0.7,
            max_prompt_tokens=96,
            max_completion_tokens=6,
        )
    }
    assert len({str(jax.random.key_data(call["key"])) for call in calls}) == STEPS


def regenerate(model: Path, rewards, texts, **asked):
    """Returns the reprompts of groups with these rewards, and the metrics of regeneration.

    The groups answer with `texts`. A text that holds "yes" is right.
    """
    tokenizer = Tokenizer.load(model)

    def completion(text):
        tokens = np.asarray(tokenizer.encode(text), np.int32)
        zeros = np.zeros(len(tokens), np.float32)
        return Completion(tokens=tokens, logprobs=zeros, text=text, finish="stop")

    def group(number, of_group):
        message = {"role": "user", "content": f"Question {number}"}
        example = Example(id=str(number), messages=(message,), answer="", task="t")
        feedback = [f"Not {number}.{i}" for i in range(len(of_group))]
        return Group(
            example=example,
            prompt=tokenizer.encode_prompt(example.messages),
            completions=tuple(completion(f"sibling {i}") for i in range(len(of_group))),
            grades=tuple(
                Grade(reward=r, correct=r > 0.5, feedback=f)
                for r, f in zip(of_group, feedback, strict=True)
            ),
        )

    def stream(weights, request):
        assert texts, "nothing is to be sampled"
        for i, text in enumerate(texts):
            drawn = completion(text)
            yield i, Sampled(tokens=drawn.tokens, logprobs=drawn.logprobs, finish="stop")

    def grade(attempts):
        return [Grade(reward=float("yes" in a.text), correct="yes" in a.text) for a in attempts]

    groups = [group(i, of_group) for i, of_group in enumerate(rewards)]
    cfg = runs.job(model, Path("unused"), reprompt={"regenerate": True, **asked})
    cfg = runs.replace(cfg, reprompt=runs.replace(cfg.reprompt, success_threshold=0.5))
    guided = reprompt.build(groups, tokenizer, cfg.reprompt, enable_thinking=None, seed=0, step=0)
    setup = SimpleNamespace(
        cfg=cfg,
        task=Task(name="t", train=[], held_out=[], grader=grade),
        model=SimpleNamespace(sampler=SimpleNamespace(stream=stream), tokenizer=tokenizer),
        key=jax.random.key(0),
    )
    sampled = SampledGroups(groups=groups, sampled=groups, rounds=1)
    inputs = host_step.StepInputs(sampled=sampled, contexts={"solution": guided}, metrics={})
    made = regeneration.regenerate(setup, None, inputs, step=0)
    texts = [[tokenizer.decode_raw(r.tokens) for r in of_group] for of_group in made.reprompts]
    return texts, made.metrics


def test_without_a_demonstration_nothing_is_sampled_and_feedback_stays(model):
    (first, second), metrics = regenerate(model, [[0.0, 0.0], [0.0]], [], feedback=True)
    assert metrics == {}
    assert "Not 0.1" in first[1] and "Not 1.0" in second[0] and "sibling" not in "".join(first)


def test_feedback_returns_where_the_new_answer_is_wrong(model):
    (first, second), metrics = regenerate(
        model, [[0.0, 1.0], [1.0, 0.0]], ["no", "oh yes"], feedback=True
    )
    assert metrics == {"reprompt/regenerated": 0.5}
    assert ["Not 0.0" in first[0], "Not 0.1" in first[1]] == [True, True]
    assert all("oh yes" in text and "Not" not in text for text in second)
    assert "sibling" not in "".join(first + second)


def test_the_new_answer_is_stripped_of_its_thinking(model):
    texts = ["<think>yes?</think>It is so.", "<think>yes</think>"]
    (first, second), metrics = regenerate(model, [[1.0, 0.0]] * 2, texts, strip_thinking=True)
    assert metrics == {"reprompt/regenerated": 1.0}
    assert all("It is so." in text and "yes?" not in text for text in first)
    # Nothing is left of the second text.
    assert all("Correct solution" not in text for text in second)
