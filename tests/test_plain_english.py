"""No sentence of a page or a docstring is longer than 30 words (dev/plain_english.py)."""

import runpy

import pytest
from paths import ROOT

CHECK = runpy.run_path(str(ROOT / "dev" / "plain_english.py"))
PAGES = CHECK["files"](*CHECK["PAGES"])
CODE = CHECK["files"](*CHECK["CODE"])


def texts(room):
    return [file for file in [*PAGES, *CODE] if CHECK["room"](file) == room]


def long_or_refused(text, suffix, folder):
    file = folder / f"text{suffix}"
    file.write_text(text, encoding="utf-8")
    return [(one.line, one.problem) for one in CHECK["offences"](file)]


@pytest.mark.parametrize("room", sorted({CHECK["room"](file) for file in [*PAGES, *CODE]}))
def test_sentences_are_short(room):
    found = [str(one) for file in texts(room) for one in CHECK["offences"](file)]
    assert not found


def test_pages_and_code_are_found():
    assert {"README.md", "docs"} <= {CHECK["room"](file) for file in PAGES}
    rooms = {CHECK["room"](file) for file in CODE}
    assert {"sdjax/learner", "sdjax/config", "sdjax/main.py", "configs", "dev"} <= rooms


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three?", 3),
        ("kind: the first. lower_case: the second.", 2),
        ("See e.g. Smith et al. (2020) for more.", 1),
        ("It takes 3.11 s (median). Then it ends.", 2),
        ("Rows i, j, ... stay as they are.", 1),
        ('It says "no." Then it ends.', 2),
    ],
)
def test_sentences_are_told_apart(text, number):
    assert len(list(CHECK["sentences"](text))) == number


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("One two three.", 3),
        ("Run `python -m sdjax.main --config FILE` now.", 3),
        ("See docs/reference/config.md or https://example.com/a?b=c.", 4),
        ("(1 - a) x b = c + d", 6),
    ],
)
def test_code_and_paths_are_one_word(sentence, number):
    assert CHECK["words"](sentence) == number


LONG = " ".join(["word"] * 31) + "."
SHORT = " ".join(["word"] * 30) + "."


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"# Title\n\n{LONG}\n", [3]),
        (f"{SHORT} {SHORT}\n", []),
        (f"{' '.join(['word'] * 20)}\n{' '.join(['word'] * 20)}.\n", [1]),
        (f"- {SHORT}\n- {LONG}\n  more\n", [2]),
        (f"| a | b |\n|---|---|\n| {SHORT} | {LONG} |\n", [3]),
        (f"```\n{LONG}\n```\n\nText.\n\n    {LONG}\n\n{LONG}\n", [9]),
        (f"- item\n\n  {LONG}\n", [3]),
        (f"<!-- {LONG}\n-->\n[{SHORT[:-1]}](https://a.b/c)\n", []),
    ],
)
def test_a_page_is_read_as_markdown(text, lines, tmp_path):
    found = long_or_refused(text, ".md", tmp_path)
    assert [line for line, _ in found] == lines


DOCSTRINGS = f'''"""{SHORT}

No jax. It ends.
"""
X = 1
"""{LONG}"""


def f(a):
    """Returns what it returns.

        {LONG}

    Args:
      a: {SHORT[:-1]}
      b: {LONG}
    """
    text = """{LONG}"""
    return text


class C:
    """A class of its own."""

    y: int = 0
    """{LONG}"""
'''


def test_docstrings_are_found_and_other_texts_are_not(tmp_path):
    found = long_or_refused(DOCSTRINGS, ".py", tmp_path)
    assert sorted(found) == [
        (3, 'says "No jax."'),
        (6, "31 words"),
        (10, 'says "Returns what"'),
        (16, "31 words"),
        (23, 'says "of its own"'),
        (26, "31 words"),
    ]
