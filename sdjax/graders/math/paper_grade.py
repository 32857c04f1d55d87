r"""Grades a mathematical answer as the evaluation of arXiv:2603.24472 does.

Use it only to compare figures with the paper's. It reads the whole response, accepts a box that
never closes, and takes 5 for 500. `extract` and `strip` reproduce `extract_answer` and
`strip_string` of eval/utils/parser.py, quirks included. `paper_symbolic` compares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdjax.graders.workers.grade_batch import Attempt, Grader, verdicts
from sdjax.graders.workers.pool import Lost, Pool, shared
from sdjax.records import Grade

# Longer answers are cut, because some patterns below are slow on long texts.
MAX_LENGTH = 2000

# The units that are removed, phrases first. A dot stands for any character, and some units are
# single letters, so "(a+5)" loses its a.
_PHRASES = ["m sqaure", " m east", "sq m", "q .", "profit of rs", "p . m"]
_PHRASES += [f"{letter} ." for letter in "abcdefgh"] + ["no change", "π r 2", "° f"]
_UNITS = (
    "a ab acre am apple are bc by c cc cm coin cube cubic d day decrease deg degree dm east "
    "excess feet ft g gain gal gallon gm h hectare hour hr inch inches increase kg km kmh "
    "kmph l lb less liter litre loss lt m man mark men meter metre mile min minute minw mm "
    "monkey month more mp mph mt mtr noon number o ohm per percent pie pm prime profit pure "
    "ratio rd rise rounds rs rupee s sec second soldier sq square st Surface t th tile toy "
    "unit way west woman women yard year yr"
).split()
_UNIT = [
    re.compile(rf"(^|\W){unit}{plural}($|\W)")
    for plural in ("", "s")
    for unit in (*_PHRASES, *_UNITS)
]
_MONTH = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b",
    re.IGNORECASE,
)
_SMALL = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
} | {
    word: 10 * value
    for value, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
    )
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def reference(pool: Pool | None = None) -> Grader:
    """Returns the grader of the paper's evaluation, whose `details` hold extracted and stripped."""
    pool = pool or shared("sdjax.graders.math.paper_symbolic:same", warm_up=("x", "1"))

    def grader(attempts: Sequence[Attempt]) -> list[Grade]:
        extracted = [extract(a.text) for a in attempts]
        pairs = [(strip(e), strip(a.answer)) for e, a in zip(extracted, attempts, strict=True)]
        agreed = verdicts(pairs, _quick, pool)
        return [_grade(*found) for found in zip(attempts, extracted, pairs, agreed, strict=True)]

    return grader


def _quick(prediction: str, gold: str) -> bool | None:
    # Two empty texts are equal: \text{east} is stripped to nothing, as a missing answer is.
    if prediction.lower() == gold.lower():
        return True
    return None if prediction else False


def _grade(attempt: Attempt, extracted: str, pair: tuple[str, str], agreed: bool | Lost) -> Grade:
    correct = agreed is True
    return Grade(
        reward=float(correct),
        correct=correct,
        details={
            "extracted": extracted,
            "stripped": pair[0],
            "truncated": attempt.truncated,
            "lost": agreed.reason if isinstance(agreed, Lost) else None,
        },
    )


def extract(text: str) -> str:
    r"""Returns the text in the braces after the last "boxed", closed or not, else up to a $."""
    text = text.replace("ки", "")
    _, found, after = text.rpartition("boxed")
    if not found:
        return ""
    if after.startswith("{"):
        answer = _braces(after[: MAX_LENGTH + 1])
    else:
        answer = after.partition("$")[0].strip()
    answer = re.sub(r"\n\s*", "", answer[:MAX_LENGTH])
    return answer.removeprefix(":").removesuffix(".").removesuffix("/")


def _braces(text: str) -> str:
    depth = 0
    for i, c in enumerate(text):
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth == 0:
            return text[1:i]
    return text[1:]


def strip(text: str) -> str:
    """Returns an answer rewritten for comparison, in the same steps as the paper's code."""
    text = text[:MAX_LENGTH].strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = _commands(text)
    without = re.sub(r"\\text\{.*?\}$", "", text).strip()
    text = without or text
    for unit in _UNIT:
        text = unit.sub(r"\1\2", text) or text
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = text.replace("\\(", "").replace("\\)", "")
    text = _words_to_digits(text)
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for name in ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to"):
        text = text.replace(name, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "")
    text = _MONTH.sub("", text)
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    return _compact(text)


def _commands(text: str) -> str:
    """Returns LaTeX with one spelling for matrices, fractions, relations and brackets."""
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = text.replace("\\end{array}", "\\end{pmatrix}").replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for long, short in (("\\neq", "\\ne"), ("\\leq", "\\le"), ("\\geq", "\\ge")):
        text = text.replace(long, short)
    text = text.replace("\\left", "").replace("\\right", "")
    return text.replace("\\{", "{").replace("\\}", "}")


def _words_to_digits(text: str) -> str:
    """Returns the number that English words in the text name, or the text."""
    if text.isdecimal():
        return str(int(text))
    words = text.lower().replace("-", " ").split()
    words = [word for word in words if word in _SMALL or word in _LARGE or word == "hundred"]
    if not words:
        return text
    total = part = 0
    for word in words:
        if word in _SMALL:
            part += _SMALL[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        else:
            total, part = total + max(part, 1) * _LARGE[word], 0
    return str(total + part)


def _compact(text: str) -> str:
    """Returns the text without words, names and spaces, with fractions and roots in full."""
    text = text.replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox\{.*?\}", "", text).strip()
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*([^\d]|$)", r"\1\2", text)
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _fractions(text)


def _fractions(text: str) -> str:
    """Returns a text with braces around the one-character arguments of its fractions."""
    first, *rest = text.split("\\frac")
    if all(after.startswith("{") or len(after) > 1 for after in rest):
        text = "\\frac".join([first, *map(_with_braces, rest)])
    top, slash, bottom = text.partition("/")
    if slash and all("sqrt" in part or _is_integer(part) for part in (top, bottom)):
        return rf"\frac{{{top}}}{{{bottom}}}"
    return text


def _with_braces(after: str) -> str:
    """Puts braces around the first two characters that follow a fraction command."""
    if after.startswith("{"):
        return after
    second = after[1] if after[1] == "{" else f"{{{after[1]}}}"
    return f"{{{after[0]}}}{second}{after[2:]}"


def _is_integer(text: str) -> bool:
    """Returns whether a text is an integer in its shortest spelling."""
    return re.fullmatch(r"0|-?[1-9]\d*", text) is not None
