r"""Grades an answer that is one number.

The rule reads only the text after the thinking. The answer is the number in the last
<answer>...</answer>, else in the last \boxed{...}, else the last number of the text. A box or tag
must hold exactly one number after its last "=", so that a list of candidates earns nothing. If the
length limit cut the completion off, only a box or tag counts, because the last number of such a
text is accidental.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

from sdjax.graders.answer import currency
from sdjax.graders.answer import tolerance as tolerances
from sdjax.graders.answer.regions import after_thinking, stated_answer
from sdjax.records import Grade

_MAX_EXPONENT = 400
# Longer numbers are not read.
_MAX_LENGTH = 1000

# 1,234 and 1{,}234 are one number; "17, 92" and "17,92" are two.
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_MONEY = (
    rf"(?:(?:(?<![A-Za-z])(?:{'|'.join(currency.DOLLARS)}))?\\?\$|[{currency.SIGNS}]"
    rf"|(?:{'|'.join(currency.CODES)}|kr)\s?|Rs\.?\s?)"
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]\s?)?(?:{_MONEY}\s?(?P<inner>[-+]\s?)?)?"
    r"(?:(?:(?P<whole>\d+)\s?)?\\[dtc]?frac\{(?P<top>-?\d+)\}\{(?P<bottom>-?\d+)\}"
    r"|(?:(?P<mixed>\d+) )?(?<!/)(?P<a>\d+)\s?/\s?(?P<b>\d+)(?!\d|/|\.\d)"
    r"|10\s?\^\s?(?:\{(?P<ten>[-+]?\d+)\}|(?P<tens>[-+]?\d+))(?![\w.])"
    rf"|(?P<decimal>{_DIGITS})"
    r"(?:\s?(?:\\times|\\cdot|[×*·xX])\s?10\s?\^\s?(?:\{(?P<power>[-+]?\d+)\}|(?P<raised>[-+]?\d+))"
    r"|[eE](?P<e>[-+]?\d+)(?!\w))?(?P<more>(?:\s?\^\s?|_)[\w{({])?)",
    re.ASCII,
)
_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\u2012\u2010\u2011\ufe63\uff0d", "-"))
_WIDE = str.maketrans("０１２３４５６７８９", "0123456789")
# What may stand between a minus sign and its number:
# -{5}, -(5), -\text{5}, -\left(5\right), -**5**.
_OPEN = r"(?:\\left|\\(?:text|mathrm|mathbf|boldsymbol|mathit)\s?(?=\{)|[{(|`]|\*\*)"
_CLOSE = r"(?:\\right|[})|`]|\*\*)"
_WRAPPED = re.compile(rf"-\s?(?:{_OPEN}\s?)+(?P<number>[\d.,]+)\s?(?:{_CLOSE}\s?)+", re.ASCII)
_WRAPPED_SIGN = re.compile(r"(?:\\(?:text|mathrm|mathbf)\s?)?\{\s?-\s?\}(?=\s?[\d.])")
_SIGN_WORD = re.compile(r"\b(?:minus|negative)\s(?=[\d.$])", re.IGNORECASE)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_THIN = re.compile(r"(?<=\d)(?:\\[,;:!]|[\u2009\u202f\u00a0~])+(?=\d{3}(?!\d))")
_COMMA = re.compile(r"(?<=\d),\\[!](?=\s?\d{3}(?!\d))")
_SPACE = re.compile(
    r"(?:\\[,;:! ]|\\(?:q?quad|thinspace|enspace)(?![a-zA-Z])|&nbsp;|[~\u2009\u202f\u00a0 \t])+"
)
_BOXED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/])")
_LETTERS = re.compile(r"(\\?[A-Za-z]+)$")
_RAISED_BEFORE = re.compile(r"(?:\^|(?<=[\w)}\]])_)\{?$")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_UNDERSCORE = re.compile(r"(?<=\d)_(?=\d{3}(?!\d))")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_SHORT_FRACTION = re.compile(r"(\\[dtc]?frac)\s?(\d)\s?(\d)")
# What makes a number a part of an expression: a root, a function, a fraction of other things, a
# constant or a product of unknowns. "5x" may be five times, and "5m" five metres.
_PART_BEFORE = re.compile(
    r"(?:(?:\\|(?<![A-Za-z]))sqrt\s?(?:\[\w+\])?\s?[({]?|[√∛∜]\s?\(?"
    r"|\\(?:log|ln|lg|exp|sin|cos|tan)(?:_\w|_\{\w+\})?\s?[({]?"
    r"|\\[dtc]?frac\s?(?:\{(?:[^{}]*\}\s?\{)?[^{}]*)?)$"
)
_PART_AFTER = re.compile(
    r"\s?(?:\\pi(?![A-Za-z])|π|\\sqrt|[√∛∜])|(?:[xyzabnk]{2,3}|[yzabnkKMB])(?![A-Za-z])"
)


def canonical(text: str) -> str | None:
    """Returns a number in its shortest spelling ("-0012.50" -> "-12.5"), or None.

    A decimal is written in full, and a number without a finite decimal as a fraction.
    """
    text = _plain(text).strip()
    match = _NUMBER.fullmatch(text)
    value = None if match is None else _value(match)
    return None if value is None else _spelling(value)


def is_plain(text: str) -> bool:
    """Returns whether a text is an integer or a decimal, and no fraction or power of ten."""
    return re.fullmatch(rf"[-+]?{_DIGITS}", _plain(text).strip(), re.ASCII) is not None


def numbers(text: str) -> list[str | None]:
    r"""Returns the numbers in a text, in order, in their shortest spelling.

    A minus sign belongs to a number unless a digit, letter or closing bracket joins it on the left.
    A number that is only a part of an expression, as in "2^x" and "\sqrt{2}", is None.
    """
    return [None if value is None else _spelling(value) for value in _values(_plain(text))]


def _plain(text: str) -> str:
    """Returns a text with plain signs and spaces, and without thin spaces inside a number."""
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m.group()), text)
    text = _INVISIBLE.sub("", text).replace("\N{FRACTION SLASH}", "/")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^" + m.group().translate(_RAISED), text)
    text = _SHORT_FRACTION.sub(r"\1{\2}{\3}", _UNDERSCORE.sub("", text))
    text = _THIN.sub("", _COMMA.sub("", text.translate(_SIGNS).translate(_WIDE)))
    text = _SIGN_WORD.sub("-", _SPACE.sub(" ", text))
    return _WRAPPED.sub(r"-\g<number> ", _WRAPPED_SIGN.sub("-", text))


def _values(text: str) -> Iterator[Fraction | None]:
    """Yields the value of each number of a plain text, None for a part of an expression."""
    for match in _NUMBER.finditer(text):
        start = match.start()
        before = text[max(start - 40, 0) : start]
        if _RAISED_BEFORE.search(before):
            continue  # the exponent of a unit, the index of a variable
        letters = _LETTERS.search(before)
        if match["sign"] is None and letters and not letters[1].startswith("\\"):
            continue  # CO2, x1
        part = _PART_BEFORE.search(before) or _PART_AFTER.match(text, match.end())
        yield None if part else _value(match, not _joins(before))


def _joins(before: str) -> bool:
    """Returns whether a sign after this text is a dash or a difference."""
    if not before.endswith(" "):
        return before[-1:].isalnum() or before[-1:] in (")", "]", "}", "-") if before else False
    word = before.rstrip()
    if not word:
        return False
    variable = re.search(r"(?<![A-Za-z\\])[A-Za-z]$", word) is not None
    return word[-1].isdigit() or word[-1] in ")]}" or variable


def _value(match: re.Match[str], signed: bool = True) -> Fraction | None:
    """Returns the value of a number, or None for one that is too long or part of a power."""
    part = match.groupdict()
    if len(match.group()) > _MAX_LENGTH:
        return None
    ten = part["ten"] or part["tens"]
    exponent = int(ten or part["power"] or part["raised"] or part["e"] or 0)
    if part["more"] or abs(exponent) > _MAX_EXPONENT:
        return None
    if ten is not None:
        value = Fraction(10) ** exponent
    elif part["decimal"] is not None:
        value = Fraction(re.sub(r"[,{}]", "", part["decimal"])) * Fraction(10) ** exponent
    else:
        top, bottom = int(part["top"] or part["a"]), int(part["bottom"] or part["b"])
        if bottom == 0:
            return None
        value = int(part["whole"] or part["mixed"] or 0) + Fraction(top, bottom)
    outer = part["sign"] if signed else None
    minus = sum("-" in sign for sign in (outer, part["inner"]) if sign)
    return -value if minus % 2 else value


def _spelling(value: Fraction) -> str:
    places, rest = 0, value.denominator
    while rest % 10 == 0:
        rest //= 10
        places += 1
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
            places += 1
    if rest != 1:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    number = f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".") if places else digits
    return f"-{number}" if value < 0 else number


def grade(
    text: str, answer: str, *, truncated: bool = False, tolerance: float | None = None
) -> Grade:
    """Returns reward 1 if the number of the text equals `answer`, else 0.

    `tolerance` is relative to the answer; None stands for that of `tolerance.of_answer`. Raises
    UserError for a tolerance that is none.
    """
    tolerance = tolerances.checked(tolerance)
    stated = stated_answer(text)
    if stated is not None:
        # Nothing but a sign begins an answer with a long dash.
        value = _plain(stated.rpartition("=")[2].strip()[:_MAX_LENGTH])
        value = re.sub("^\N{EM DASH}", "-", value)
        found = numbers(_BOXED_THOUSANDS.sub(lambda m: m.group().replace(" ", ""), value))
        prediction = found[0] if len(found) == 1 else None
    elif truncated:
        prediction = None
    else:
        found = numbers(_without_bullets(after_thinking(text)[-10_000:]))
        prediction = found[-1] if found else None
    gold = canonical(answer)
    correct = prediction is not None and gold is not None and _same(prediction, gold, tolerance)
    # Right answers vote together, also where the tolerance makes them right.
    vote = {"vote": gold} if correct and prediction != gold else {}
    feedback = ""
    if prediction is None:
        feedback = (
            "Your response was cut off before it stated an answer."
            if truncated
            else "Your response does not state one number as its answer."
        )
    return Grade(
        reward=float(correct),
        correct=correct,
        feedback=feedback,
        details={"prediction": prediction, "truncated": truncated} | vote,
    )


def _without_bullets(text: str) -> str:
    """Returns a text whose lines do not begin with the mark of a list."""
    return re.sub(r"(?m)^[ \t]*- (?=\S)", "", text)


def _same(prediction: str, gold: str, tolerance: float | None) -> bool:
    if tolerance is None:
        tolerance = tolerances.of_answer(gold)
    return prediction == gold or tolerances.close(Fraction(prediction), Fraction(gold), tolerance)
