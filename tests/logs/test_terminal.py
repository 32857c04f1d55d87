"""What the terminal shows of two completions: marked words, no control codes, no broken frames."""

import io
import sys

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from sdjax import config
from sdjax.logs import terminal, writers
from sdjax.logs.terminal import ShownCompletion
from sdjax.records import Completion, Example, Grade, Group
from sdjax.training import update_log

RIGHT = ShownCompletion(
    id="train-3",
    question="What is 1 + 1?",
    text="Hmm, wait. It is 2.",
    tokens=9,
    cut_off=False,
    reward=1.0,
    correct=True,
)


def wrong(text, **changes):
    given = vars(RIGHT) | {"text": text, "reward": -0.25, "correct": False, "cut_off": True}
    return ShownCompletion(**given | changes)


def printed(pair, width=60, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(terminal.frame(7, pair, "word"), highlight=False)
    return console.file.getvalue()


def test_plain_lines_show_question_grades_texts_and_doubt():
    assert terminal.lines(7, [RIGHT, wrong("Perhaps\n3.")], "word").splitlines() == [
        "step 7, train-3: What is 1 + 1?",
        "  right  reward 1  9 tokens",
        "    *Hmm*, *wait*. It is 2.",
        "  wrong  reward -0.25  9 tokens, cut off",
        "    *Perhaps*",
        "    3.",
    ]


def test_another_question_is_shown_again():
    other = wrong("3", question="What is 2 + 2?", id="train-4")
    text = terminal.lines(7, [RIGHT, other], "word")
    assert text.count("step 7, ") == 2 and "train-4: What is 2 + 2?" in text


def test_a_frame_marks_doubt_in_colour_and_grades_in_green_and_red():
    shown = printed([RIGHT, wrong("no")], force_terminal=True, color_system="standard")
    assert "\x1b[1;33mHmm\x1b[0m, \x1b[1;33mwait\x1b[0m. It is 2." in shown
    assert "\x1b[1;32mright" in shown and "\x1b[1;31mwrong" in shown


HOSTILE = [
    "\x1b[2J\x1b[31mred\x07\r\x9b",
    "[bold]markup[/bold] [/nothing] [link=x]",
    "\u202eright to left\u2066 \u200b",
    "\ud800 lone, \x00 none, \x7f",
    "全角文字が並ぶ" * 40,
    "👩‍👩‍👧‍👦 e\u0301 İstanbul WAİT wait",
    "a" * 5000,
    "\n" * 500 + "end",
    "",
    "a\tb\xa0c\u3000d",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_of_a_model_reaches_the_terminal_as_a_code_or_breaks_the_frame(text):
    for width in (20, 60):
        shown = printed([RIGHT, wrong(text, question=text, id=text[:9])], width)
        rows = shown.splitlines()
        assert all(c.isprintable() for row in rows for c in row), shown
        assert {cell_len(row) for row in rows} == {width}
        assert len(rows) < 20 + 3 * (terminal.ANSWER + terminal.QUESTION) // (width - 8) + 60
    plain = terminal.lines(7, [wrong(text, question=text)], "word")
    assert all(c.isprintable() or c == "\n" for c in plain)
    assert len(plain.splitlines()) <= 2 * (terminal.LINES + 2) + 2


def test_markup_and_escapes_are_shown_as_they_are():
    assert "[bold]x[/bold]" in printed([wrong("[bold]x[/bold]")])
    assert r"\x1b[2J" in terminal.lines(1, [wrong("\x1b[2J")], "word")


def test_the_middle_of_a_long_text_is_left_out_and_counted():
    text = "a" * 1000 + "b" * 1000 + "c" * 1000
    shown = terminal.shortened(text, 1200)
    assert shown == "a" * 800 + " [... 1800 characters ...] " + "c" * 400
    rows = terminal.shortened("\n".join(map(str, range(40))), 1200).split("\n")
    assert rows[0] == "0" and rows[10] == "[... 25 lines ...]" and rows[-1] == "39"


def test_a_terminal_without_unicode_gets_escapes(monkeypatch):
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", raw)
    print(terminal.lines(1, [wrong("½ 全")], "word"))
    raw.flush()
    assert b"\\xbd \\u5168" in raw.buffer.getvalue()


def test_scores_break_between_words_and_a_command_nowhere(monkeypatch):
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    scores = "step 2  eval/avg@1 0.5  eval/answer_length 11.5  eval/epistemic_per_response 6.4"
    bar = terminal.Bar(4, None)
    bar.say(scores, wrapped=True)
    bar.say(f"sdjax --config {'long' * 10}.py --resume")
    bar.close()
    said, command = console.file.getvalue().split("sdjax", 1)
    assert said.split() == scores.split() and max(map(len, said.splitlines())) <= 40
    assert len(said.splitlines()) == 3
    assert command.splitlines()[0] == f" --config {'long' * 10}.py --resume"


def test_secrets_are_hidden_although_the_frame_breaks_lines(monkeypatch):
    secret = "planted-secret-" + "0123456789" * 4
    monkeypatch.setenv("MY_API_TOKEN", secret)
    shown = printed([wrong(f"it is {secret}.")], width=30)
    assert "it is ***." in shown and "planted" not in shown


def group(number, *correct):
    asked = ({"role": "user", "content": f"Question {number}?"},)
    example = Example(id=f"train-{number}", messages=asked, answer="2", task="sums")
    completion = Completion(
        tokens=np.arange(3), logprobs=np.zeros(3), text=f"text {number}", finish="stop"
    )
    grades = tuple(Grade(reward=float(c), correct=c) for c in correct)
    return Group(
        example=example,
        prompt=np.arange(2),
        completions=(completion,) * len(correct),
        grades=grades,
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        # Of one question where a group has both kinds, else of two, else one alone.
        ([(True, True), (False, True), (False, False)], [(1, True), (1, False)]),
        ([(False, False), (True, True)], [(1, True), (0, False)]),
        ([(False, False), (False, False)], [(0, False)]),
        ([(True,), (True,)], [(0, True)]),
    ],
)
def test_a_right_and_a_wrong_completion_are_chosen(groups, expected):
    found = update_log.shown([group(i, *correct) for i, correct in enumerate(groups)])
    assert [(int(one.id[-1]), one.correct) for one in found] == expected
    assert [one.question for one in found] == [f"Question {i}?" for i, _ in expected]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5]), (3, [1, 3])])
def test_completions_are_shown_after_the_line_of_the_first_and_every_nth_step(
    every, steps, tmp_path, capsys
):
    log = config.Log(to=(), show_every=every)
    with writers.Writer(tmp_path, log, steps=5, primary=True) as writer:
        for step in range(1, 6):
            writer.show(step, [RIGHT])
            writer.write(step, {"rollout/reward": 0.5})
    out = capsys.readouterr().out.splitlines()
    shown = [i for i, line in enumerate(out) if line.startswith("step") and "train-3" in line]
    assert [int(out[i].split()[1].rstrip(",")) for i in shown] == steps
    assert all(
        out[i - 1].startswith(f"step {step}/5") for i, step in zip(shown, steps, strict=True)
    )
