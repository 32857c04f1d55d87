"""Countdown: its questions, its grader, and the traces that a program tells of it."""

import functools
import json
import re
from dataclasses import replace
from random import Random

import pytest
from paths import ROOT

from sdjax import config, tasks
from sdjax.analysis import epistemic
from sdjax.config import Traces
from sdjax.errors import UserError
from sdjax.graders.answer import expression
from sdjax.jobs import traces_job
from sdjax.main import load as load_config
from sdjax.main import main
from sdjax.models.files.resolve import resolve
from sdjax.records import Completion, Example, Grade, Group
from sdjax.tasks import countdown_traces
from sdjax.tasks.countdown import Countdown, Question, draw
from sdjax.tasks.countdown_search import Voice, direct, reaches, search, solutions, stated, terms
from sdjax.tasks.countdown_traces import trace_row
from sdjax.teacher import reprompt
from sdjax.tokenizer import Tokenizer

TIMES = Countdown(needs="*", size=64, held_out=40)
ALL = {
    "times": TIMES,
    "large": Countdown(needs="*", target_low=50, target_high=99, size=64, held_out=40),
    "divide": Countdown(operations="+-*/", needs="/", target_low=2, size=64, held_out=40),
    "four": Countdown(numbers=4, size=64, held_out=40),
}
TRACES = Traces(out="", tasks=ALL)
CONFIG = load_config(ROOT / "configs/tiny/traces.py")


def task(cfg):
    return tasks.load(cfg, config.Data())


def graded(text, answer="3 4 5 = 17", **more):
    return expression.grade(text, answer, **more)


@functools.cache
def numbered(i):
    return trace_row(list(ALL.values())[i % len(ALL)], TRACES, Random(f"{i}"))


def conversations(count):
    return [numbered(i) for i in range(count)]


@pytest.mark.parametrize("name", ALL)
def test_every_question_has_its_solution_and_its_part(name):
    cfg = ALL[name]
    made = task(cfg)
    for part, examples in (("train", made.train), ("held_out", made.held_out)):
        assert len({e.answer for e in examples}) == len(examples)
        for example in examples:
            numbers, _, target = example.answer.partition(" = ")
            question = Question(tuple(map(int, numbers.split())), int(target))
            assert question.part == part
            assert cfg.target_low <= question.target <= cfg.target_high
            assert made.grade(example.solution, example, truncated=False).correct
            if cfg.needs:
                others = "".join(set("+-*/") - set(cfg.needs))
                assert not reaches(question.numbers, question.target, others)
                assert reaches(question.numbers, question.target, cfg.operations)


def test_no_seed_brings_a_question_of_one_part_into_another():
    ids = {"train": set(), "held_out": set(), "base": set()}
    for seed in range(3):
        for part, found in ids.items():
            rng = Random(f"{seed}")
            found |= {draw(TIMES, part, rng).key for _ in range(100)}
    assert not ids["train"] & ids["held_out"]
    assert not ids["base"] & (ids["train"] | ids["held_out"])


def test_fewer_training_questions_are_the_first_of_more():
    one, many = (task(Countdown(size=n, held_out=5)).train for n in (8, 40))
    assert list(one) == list(many[:8])


def test_too_many_questions_for_the_range_are_refused():
    few = {"low": 1, "high": 4, "target_low": 0, "target_high": 64}
    with pytest.raises(UserError, match=r"task.size is 5000: only \d+ distinct questions"):
        task(Countdown(size=5000, **few))
    narrow = {"low": 1, "high": 4, "target_low": 10, "target_high": 12}
    with pytest.raises(UserError, match=r"needs '/'; widen the range"):
        task(Countdown(numbers=2, operations="/", needs="/", **narrow))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"numbers": 7}, "task.numbers is 7: must be 2 to 6"),
        ({"high": 100}, "task.high is 100"),
        ({"target_low": 60}, "task.target_high is 49"),
        ({"operations": "+^"}, "task.operations is '+^'"),
        ({"needs": "/"}, "task.needs is '/'"),
    ],
)
def test_countdown_checks_its_fields(fields, says):
    with pytest.raises(UserError, match=re.escape(says)):
        Countdown(**fields)


@pytest.mark.parametrize(
    "text",
    [
        "3 * 4 + 5",
        "Answer: ( 4 * 3 ) + 5",
        "<think> 3 + 4 = 7, no </think>\nAnswer: 5+3*4 = 17",
        "I think <answer>5 + 4 × 3</answer> is right",
        r"so \boxed{(4·3)+5}",
    ],
)
def test_a_right_expression_is_graded_right(text):
    assert graded(text).correct and graded(text).reward == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3 + 4 + 5", "Your answer gives 12, not 17."),
        ("4 * 5 - 3 / 1", "does not use each of the given numbers exactly once"),
        ("3 * 4 + 5 + 0", "does not use each of the given numbers exactly once"),
        ("17", "does not use each"),
        ("3 * 4 + 5 = 18", "says that it gives 18"),
        ("5 / ( 3 - 4 + 1 )", "does not use each"),
        ("3 * 4 + 5 or 5 + 12", "does not end with one expression"),
        ("( 3 * 4 + 5", "does not end with one expression"),
        ("3 * 4 + 5 )", "does not end with one expression"),
        ("3 4 5", "does not end with one expression"),
        ("- 3 + 4 * 5", "does not end with one expression"),
        ("", "does not end with one expression"),
    ],
)
def test_a_wrong_expression_says_why(text, says):
    grade = graded(text)
    assert not grade.correct and grade.reward == 0 and says in grade.feedback


def test_values_are_exact_and_division_by_zero_is_no_value():
    assert graded("( 8 / 3 ) * 3", "3 3 8 = 8").correct
    assert graded("1 / 3 + 1 / 3", "1 1 3 3 = 1").feedback.startswith("Your answer gives 2/3")
    assert "divides by zero" in graded("5 / ( 3 - 3 )", "3 3 5 = 5").feedback


def test_an_answer_that_is_cut_off_does_not_count():
    assert not graded("3 * 4 + 5", truncated=True).correct


def test_hostile_answers_get_a_grade():
    rng = Random(0)
    signs = "0123456789+-*/()= ×÷−\n<>{}\\answerboxd²٣\udc80"
    texts = ["".join(rng.choices(signs, k=rng.randint(0, 80))) for _ in range(3000)]
    texts += [
        "(" * 100_000,
        "9" * 100_000,
        "3**9**9**9",
        "1/0" * 60,
        "((((" * 40 + "3" + "))))" * 40,
    ]
    texts += ["9" * 6 + "*" + "9" * 6 + "*9" * 80, "</think>" * 10_000]
    for text in texts:
        assert graded(text).reward in (0.0, 1.0)


def test_the_steps_of_a_trace_are_true_and_its_answer_is_where_it_ends():
    for told in conversations(300):
        thinking, answer = told.answer.split(" </think>\n")
        assert thinking.startswith("<think> ") and answer.startswith("Answer: ")
        for a, sign, b, c in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", thinking):
            value = expression.parse(f"{a} {sign} {b}").value
            assert value == int(c) <= 99
        numbers = re.findall(r"\d+", told.question)
        question = f"{' '.join(numbers[:-1])} = {numbers[-1]}"
        gave_up = "sure" in thinking or "it is this" in thinking or "give up" in thinking
        assert graded(told.answer, question).correct != gave_up
        assert reprompt.strip_thinking(told.answer) == answer


def test_a_search_goes_back_and_more_patience_finds_more():
    rng = Random(0)
    questions = [draw(TIMES, "base", rng) for _ in range(200)]
    solved = {}
    for patience in (1, 6, 30):
        found = [search(q.numbers, q.target, patience, Voice(), rng) for q in questions]
        solved[patience] = sum(f.solved for f in found) / len(found)
    # Guessing is not enough, and all there is to try is not much.
    assert solved[1] < 0.2 < solved[6] < 0.75 < solved[30]


def test_doubt_is_said_in_the_papers_ten_words_and_direct_answers_have_none():
    words = epistemic.summarise([t.answer for t in conversations(400)], [1] * 400).words
    assert all(words.values()), words
    for question in (draw(TIMES, "base", Random(i)) for i in range(20)):
        path = next(solutions(terms(question.numbers), question.target))
        assert sum(epistemic.count(direct(path)).values()) == 0


def test_what_is_shown_orders_the_doubt_of_the_answers():
    def mean(texts):
        return epistemic.summarise(texts, [1] * len(texts)).per_response

    made = conversations(1500)
    whole = [t.answer for t in made if t.shown and "<think>" in t.shown]
    line = [t.answer for t in made if t.shown and "<think>" not in t.shown]
    unguided = [t.answer for t in made if t.shown is None]
    assert mean(whole) < 0.5 * mean(line) < 0.5 * mean(unguided)


def rows_of(count, **changes):
    """Returns rows of traces whose questions all show a solution, or none."""
    cfg = replace(TRACES, **changes)
    return [trace_row(list(ALL.values())[i % 4], cfg, Random(f"{i}")) for i in range(count)]


def right(row):
    """Returns whether the answer's expression has the numbers and the target of the question."""
    *numbers, target = re.findall(r"\d+", row.question)
    return bool(graded(row.answer, f"{' '.join(numbers)} = {target}").correct)


def test_answers_to_a_shown_solution_can_give_up_as_often_as_the_others():
    def wrong(**changes):
        return sum(not right(row) for row in rows_of(300, **changes)) / 300

    as_it_is, unguided = wrong(guided=1.0), wrong(guided=0.0)
    assert as_it_is == 0 and 0.4 < unguided < 0.7
    assert abs(wrong(guided=1.0, guided_gives_up=True) - unguided) < 0.08


def test_giving_up_keeps_what_is_shown_and_its_style():
    before, after = (rows_of(300, guided=1.0, guided_gives_up=x) for x in (False, True))
    assert [row.shown for row in before] == [row.shown for row in after]

    def doubt(rows, whole):
        texts = [r.answer for r in rows if ("<think>" in r.shown) == whole and not right(r)]
        words = epistemic.summarise(texts, [len(t.split()) for t in texts])
        return words.per_1000_tokens

    assert doubt(after, whole=True) < 0.6 * doubt(after, whole=False)


def test_an_instruction_is_read_as_a_teacher_shows_it_and_its_search_never_gives_up():
    rows = rows_of(200, guided=0.0, instructed=0.5)
    told = [row for row in rows if row.instruction]
    assert 70 < len(told) < 130 and all(map(right, told))
    assert not all(right(row) for row in rows if not row.instruction)
    contexts = load_config(ROOT / "configs/tiny/contexts.py").contexts
    example = Example(
        id="", messages=({"role": "user", "content": told[0].question},), answer="", task=""
    )
    teacher = reprompt.messages(example, (), "", contexts["keep_trying"])
    assert traces_job.messages(told[0], CONFIG.reprompt)[:-1] == list(teacher)


def test_a_search_that_may_not_give_up_ends_all_the_same(monkeypatch):
    monkeypatch.setattr(countdown_traces, "MOST_SEARCHES", 1)
    with pytest.raises(
        UserError, match=r"^patience is \(1, 1\): 1 searches of a question found no"
    ):
        rows_of(50, guided=0.0, instructed=1.0, patience=(1, 1))


def test_a_solution_is_shown_as_a_teacher_reads_it():
    example = task(TIMES).train[0]
    completion = Completion(tokens=[], logprobs=[], text=example.solution, finish="stop")
    group = Group(
        example=example,
        prompt=[],
        completions=(completion,),
        grades=(Grade(reward=1.0, correct=True),),
    )
    for strip, shown in ((False, example.solution), (True, example.solution.split("\n")[1])):
        cfg = config.Reprompt(strip_thinking=strip)
        text = reprompt.demonstration_text(group, 0, cfg)
        assert text == shown
        teacher = reprompt.messages(example, (text,), "", cfg)
        question = example.messages[0]["content"]
        told = next(t for t in conversations(50) if t.shown)
        told = type(told)(question, shown, "Answer: 1")
        assert traces_job.messages(told, cfg)[:-1] == list(teacher)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the directory of the config's traces, but few of them."""
    out = tmp_path_factory.mktemp("traces") / "out"
    rows = ["--rows", "40", "--workers", "1"]
    assert main(["--config", "configs/tiny/traces.py", "--out", str(out), *rows]) == 0
    return out


@pytest.mark.heavy
def test_traces_are_rows_that_depend_on_seed_and_number_alone(made):
    text = (made / "traces.jsonl").read_text()
    assert text == traces_job.chunk(CONFIG, 0, 40)
    assert traces_job.chunk(CONFIG, 0, 50).startswith(text)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"] and len(rows) == 40


@pytest.mark.heavy
def test_the_learned_tokenizer_writes_any_text_and_has_a_token_for_each_number(made):
    tokenizer = Tokenizer.load(made / "model")
    for text in ("<think> 3 + 4 </think>\nAnswer: 7", "Grüße, 世界\t<|im_end|", "0123 -4.5\r\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for number in range(100):
        assert len(tokenizer.encode(f" {number}")) == 1
    for word in ("<think>", "</think>", " Perhaps", "Answer", " likely", " seems"):
        assert len(tokenizer.encode(word)) == 1, word
    fields = json.loads((made / "model" / "config.json").read_text())
    assert tokenizer.vocab_size <= fields["vocab_size"]
    assert tokenizer.stop_ids == (fields["eos_token_id"],)


@pytest.mark.heavy
def test_the_tokenizer_that_is_shipped_is_the_one_that_is_learned(made):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (resolve("package:sdjax.tiny") / name).read_bytes() == (
            made / "model" / name
        ).read_bytes()


@pytest.mark.heavy
def test_processes_change_no_row(made, tmp_path):
    cfg = ["--config", "configs/tiny/traces.py", "--rows", "40", "--out", str(tmp_path / "other")]
    assert main([*cfg, "--workers", "2"]) == 0
    for name in ("traces.jsonl", "model/tokenizer.json", "model/config.json"):
        assert (made / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--vocabulary", "200"], "vocabulary is 200: at least 261"),
        (["--patience", "5", "2"], "patience is (5, 2)"),
        (["--guided", "1.5"], "guided is 1.5"),
        (["--shown-answer", "0.9"], "shown_answer is 0.9: exceeds 1"),
        (["--instructed", "1.5"], "instructed is 1.5"),
        (["--instructed", "0.5", "--instruction", ""], "instruction is ''"),
    ],
)
def test_a_wrong_field_of_traces_is_one_line(change, says, capsys, tmp_path):
    out = tmp_path / "x"
    assert main(["--config", "configs/tiny/traces.py", "--out", str(out), *change]) == 2
    assert says in capsys.readouterr().err and not out.exists()


@pytest.mark.heavy
def test_traces_are_not_overwritten_and_come_of_countdown_alone(made, capsys):
    assert main(["--config", "configs/tiny/traces.py", "--out", str(made)]) == 2
    assert "it holds traces" in capsys.readouterr().err
    with pytest.raises(UserError, match="only Countdown has traces"):
        traces_job.run(Traces(out=str(made), tasks={"x": config.TaskConfig()}))


def test_a_stated_answer_is_the_whole_expression():
    path = next(solutions(terms((2, 3, 4)), 20))
    assert expression.parse(stated(path).removeprefix("Answer: ")).value == 20
