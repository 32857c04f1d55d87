"""Rewrites short LaTeX answers in one spelling, and reads numbers, lists and matrices."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# Longer texts are cut, because they are not answers and some patterns below are slow on them.
MAX_LENGTH = 2000
_MAX_EXPONENT = 300

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u03c0": r"\pi ", "\u221e": r"\infty ",
    "\u00b0": r"^\circ", "\u2248": r"\approx ", "\u222a": r"\cup ", "\u2208": r"\in ",
    "\u00b1": r"\pm ", "\u221a": r"\sqrt ", "\u3002": ".", "\uff0c": ",",
}  # fmt: skip
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_TRANSLATION = str.maketrans(_SYMBOLS | {chr(k): chr(v) for k, v in _FULL_WIDTH.items()})

_WORDY = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|mathsf|boldsymbol|operatorname)"
_FONT = re.compile(_WORDY + r"\s*\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?<=[\d}).])\s*(?:"
    + _WORDY
    + r"\s*\{\s*[^\d{}\\]*\}|(?<![\\a-zA-Z])[a-zA-Z]{2,}(?:\s+[a-zA-Z]+)*)"
    r"(?:\s*/\s*[a-zA-Z]+)?\s*(?:\^\s*(?:\{\s*-?\d\s*\}|\d))?\s*$"
)
_CONJUNCTION = re.compile(r"\s*,?\s*(?:" + _WORDY + r"\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")
_SPACING = re.compile(r"(?<!\\)\\[!;:> ]|\\q?quad(?![a-zA-Z])|~")
_SIZING = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])\s*\.?(?=\s*[()\[\]{}|\\]|\s|$)"
)
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:,|\{,\}|\\,|\s)\s?\d{3})+)(?!\d)")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\d|[a-zA-Z])")
_SHORT_INDEX = re.compile(r"_\s*(\w)(?!\w)|_\s*\{\s*(\w+)\s*\}")
_NAMED = re.compile(r"\\?[a-zA-Z]+(?:_\{\w+\})?(?:\([a-zA-Z,]*\))?'?")
_SYNONYMS = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\leq(?:slant)?(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\(begin|end)\{(?:b|v|B|small)?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"\\[lr]brace(?![a-zA-Z])\s*"), lambda m: "\\{" if m.group()[1] == "l" else "\\}"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])"), r"\\infty"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi"),
)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """Several answers: their brackets ("", "(]", "{}", ...) and elements."""

    brackets: str
    elements: tuple[str, ...]


def clean(answer: str, *, named: bool = False) -> str:
    r"""Returns an answer without dollar signs, sizes, units and variable names, in one spelling.

    "\dfrac12\text{ cm}" becomes "\frac{1}{2}", "x = 1{,}000." becomes "1000" ("x=1000" if
    `named`), "\text{(C)}" becomes "(C)", and "5\%" becomes "5%". Spaces between words stay.
    """
    text = _characters(answer[:MAX_LENGTH])
    text = _SIZING.sub("", _SPACING.sub(" ", text))
    text = re.sub(r"(?<!\\)\\,", " ", text)
    # Some patterns below take quadratic time on runs of spaces.
    text = re.sub(r"\s+", " ", text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = text.replace("\\%", "%").replace("\\$", "").replace("$", "")
    text = re.sub(r"\\[()\[\]]", " ", text).strip()
    text = _THOUSANDS.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)
    text = _CONJUNCTION.sub(", ", text)
    text = text.strip(" \n\t").rstrip(".,;: ").lstrip(": ")
    text = _DEGREES.sub("", text)
    text = _UNIT.sub("", text)
    for _ in range(3):
        text = _FONT.sub(r"\1", text)
    text = _SHORT_FRACTION.sub(_full_fraction, text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_INDEX.sub(lambda m: "_{" + (m.group(1) or m.group(2)) + "}", text)
    text = re.sub(r"(\d)_\{10\}", r"\1", text)
    return tight(text if named else _without_name(text))


def tight(text: str) -> str:
    """Returns a text whose only spaces are between two words or two numbers."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(
        r"(?<![a-zA-Z\d]) | (?![a-zA-Z\d])|(?<=\d) (?=[a-zA-Z])|(?<=[a-zA-Z]) (?=\d)", "", text
    )


def _characters(text: str) -> str:
    """Returns a text without control characters, direction marks and lone surrogates."""
    text = text.translate(_TRANSLATION)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )


def _full_fraction(match: re.Match[str]) -> str:
    numerator = match.group(1) if match.group(1) is not None else match.group(2)
    denominator = match.group(3) if match.group(3) is not None else match.group(4)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _without_name(text: str) -> str:
    r"""Returns an answer without a leading "x =", "f(x) =", "x \in" or "\approx"."""
    text = re.sub(r"^\s*\\approx\s*", "", text)
    text = re.sub(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", "", text)
    name, equals, value = text.partition("=")
    if equals and "=" not in value and value.strip() and _NAMED.fullmatch(re.sub(r"\s", "", name)):
        return value
    return text


_DECIMAL = r"\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>\d+)?\\frac\{{(?P<top>-?\d+)\}}\{{(?P<bottom>-?\d+)\}}"
    rf"|(?P<a>\d+)/(?P<b>\d+)|(?P<decimal>{_DECIMAL})"
    rf"(?:(?:\\times|\\cdot|\*)10\^(?:\{{(?P<power>[+-]?\d+)\}}|(?P<digit>\d))|[eE](?P<e>[+-]?\d+))?)"
)


def number(text: str) -> Fraction | None:
    """Returns the exact value of a cleaned integer, decimal, fraction or power of ten, or None."""
    inner = text
    while len(inner) > 2 and inner[0] + inner[-1] in ("{}", "()", "[]"):
        inner = inner[1:-1]
    if len(inner) > 400:
        return None
    match = _NUMBER.fullmatch(inner)
    if match is None:
        return None
    part = match.groupdict()
    sign = -1 if part["sign"] == "-" else 1
    if part["top"] is not None:
        if int(part["bottom"]) == 0:
            return None
        return sign * (int(part["whole"] or 0) + Fraction(int(part["top"]), int(part["bottom"])))
    if part["a"] is not None:
        return sign * Fraction(int(part["a"]), int(part["b"])) if int(part["b"]) else None
    exponent = int(part["power"] or part["digit"] or part["e"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return sign * Fraction(part["decimal"]) * Fraction(10) ** exponent


def is_decimal(text: str) -> bool:
    """Returns whether a cleaned answer is written with a decimal point."""
    return re.fullmatch(r"[+-]?\d*\.\d+", text) is not None


_OPENING = {"(": 1, "[": 1, "{": 1}
_CLOSING = {")": 1, "]": 1, "}": 1}


def listing(text: str) -> Listing | None:
    r"""Returns the elements of "1,2", "(1,2]" or "\{1,2\}", or None for a single answer."""
    for left, right, brackets in (("\\{", "\\}", "{}"), ("(", ")", "()"), ("[", "]", "[]"),
                                  ("(", "]", "(]"), ("[", ")", "[)")):  # fmt: skip
        if (
            text.startswith(left)
            and text.endswith(right)
            and _encloses(text, len(left), len(right))
        ):
            inner = text[len(left) : -len(right)]
            elements = _split(inner)
            return Listing(brackets, elements) if len(elements) > 1 or brackets == "{}" else None
    elements = _split(text)
    return Listing("", elements) if len(elements) > 1 else None


def _encloses(text: str, left: int, right: int) -> bool:
    """Returns whether the first bracket closes only at the end."""
    depth = 0
    for c in text[left : len(text) - right]:
        depth += _OPENING.get(c, 0) - _CLOSING.get(c, 0)
        if depth < 0:
            return False
    return depth == 0


def _split(text: str) -> tuple[str, ...]:
    """Returns the parts between the commas outside brackets, without names before "="."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += _OPENING.get(c, 0) - _CLOSING.get(c, 0)
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return tuple(tight(_without_name(part)) for part in parts if part.strip())


def matrix(text: str) -> list[list[str]] | None:
    r"""Returns the entries of one \begin{pmatrix}...\end{pmatrix}, or None."""
    match = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text, re.DOTALL)
    if match is None or "\\begin" in match.group(1):
        return None
    rows = re.sub(r"\\\\\s*$", "", match.group(1)).split("\\\\")
    return [[tight(cell) for cell in row.split("&")] for row in rows]


def plus_minus(text: str) -> tuple[str, str] | None:
    r"""Returns both readings of an answer with one \pm, or None."""
    if text.count("\\pm") != 1:
        return None
    before, _, after = text.partition("\\pm")
    return f"{before}+{after}" if before else after, f"{before}-{after}"
