r"""Spells the gold answers of a data set in other ways, by rule: equivalent ones and wrong ones.

    python tests/support/spellings.py

prints how many of them each judge calls right: the rules of sdjax, and math-verify itself. It takes
every third answer. A rule gives no spelling of an answer that it does not fit, and an answer has at
most TEN of each kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib import metadata

from paths import GOLDEN

TEN = 10
# The table takes every third answer, because the other judges take an hour for all.
STEP = 3
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
Spelling = tuple[str, str]
"""The name of the rule, and the spelling."""


def golds() -> dict[str, list[str]]:
    """Returns the distinct gold answers of each data set."""
    folder = GOLDEN / "data" / "math"
    sets = json.loads((folder / "contest_answers.json").read_text("utf-8"))
    math500 = json.loads((folder / "math500_answers.json").read_text("utf-8"))
    named = {
        "MATH-500, integers": [g for g in math500 if re.fullmatch(r"-?\d+", g)],
        "MATH-500, others": [g for g in math500 if not re.fullmatch(r"-?\d+", g)],
        "AIME 2024 and 2025": sets["aime24"] + sets["aime25"],
        "AMC 2023": sets["amc23"],
    }
    return {name: list(dict.fromkeys(found)) for name, found in named.items()}


def equivalent(gold: str) -> list[Spelling]:
    """Returns at most TEN other spellings of an answer, those that fit few answers first."""
    return _first_ten(gold, _equivalent(gold))


def wrong(gold: str) -> list[Spelling]:
    """Returns at most TEN other answers, those that fit few answers first."""
    return _first_ten(gold, _wrong(gold))


def _first_ten(gold: str, found: Iterator[Spelling]) -> list[Spelling]:
    distinct = {text: rule for rule, text in reversed(list(found)) if text != gold}
    return [(rule, text) for text, rule in reversed(distinct.items())][:TEN]


def elements(gold: str) -> tuple[str, list[str], str]:
    """Returns opening bracket, elements and closing bracket of a list; one element for others."""
    match = re.fullmatch(r"(\\left\s*)?([(\[]|\\\{)(.*?)(\\right\s*)?([)\]]|\\\})", gold)
    grouped = re.fullmatch(r"\\?\$?\d{1,3}(?:,(?:\\!)?\s*\d{3})+", gold)
    if "cup" in gold or "\\in" in gold:
        return "", [gold], ""
    if match is None:
        return "", [gold] if grouped else [part.strip() for part in gold.split(",")], ""
    parts = [part.strip() for part in match.group(3).split(",")]
    return (match.group(2), parts, match.group(5)) if len(parts) > 1 else ("", [gold], "")


def value(gold: str) -> Fraction | None:
    """Returns the value of an integer, decimal or fraction of integers, or None."""
    if re.fullmatch(_NUMBER, gold):
        return Fraction(gold)
    if match := _FRACTION.fullmatch(gold):
        sign, *digits = match.groups(default="")
        return Fraction(int(sign + digits[0] + digits[1]), int(digits[2] + digits[3]))
    return None


def _is_words(gold: str) -> bool:
    return re.fullmatch(r"\\text\{.*\}", gold) is not None


def _equivalent(gold: str) -> Iterator[Spelling]:
    left, parts, right = elements(gold)
    number = value(gold)
    if len(parts) > 1 and left in ("", "\\{"):
        yield "another order", left + ", ".join(reversed(parts)) + right
        if not left:
            yield "and", " \\text{ and } ".join(parts)
            yield "braces", "\\{" + ", ".join(parts) + "\\}"
    if number is not None:
        yield from _same_value(gold, number)
    if "^\\circ" in gold:
        for degree in ("^{\\circ}", "°", "\\text{ degrees}", " degrees", ""):
            yield "degrees", gold.replace("^\\circ", degree)
    if "frac" in gold:
        yield "dfrac", re.sub(r"\\[dt]?frac", r"\\dfrac", gold)
        yield "tfrac", re.sub(r"\\[dt]?frac", r"\\tfrac", gold)
    yield "a slash", _FRACTION.sub(r"\1\2\3/\4\5", gold) if number is not None else gold
    yield "a root sign", re.sub(r"\\sqrt\s*\{?(\d+)\}?", r"√\1", gold)
    yield "a raised digit", re.sub(r"\^(\d)(?!\d)", lambda m: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[1])], gold)
    yield "a Greek letter", gold.replace("\\pi", "π").replace("\\infty", "∞")
    yield "another minus", gold.replace("-", "−") if not _is_words(gold) else gold
    yield "spaces in brackets", re.sub(r"(?<!\\left)([(\[])([^()\[\]]*)([)\]])", r"\1 \2 \3", gold)
    yield "sizes", re.sub(r"(?<!\\left)([(\[])([^()\[\]]*)([)\]])", r"\\left\1\2\\right\3", gold)
    if "=" not in gold and len(parts) == 1 and not _is_words(gold) and "\\in" not in gold:
        yield "a name", f"x = {gold}"
    yield "dollars", f"${gold}$"
    yield "colour", rf"\textcolor{{red}}{{{gold}}}"
    yield "a full stop", f"{gold}."
    yield "thin spaces", rf"\,{gold}\,"
    yield "a line end", rf"{gold}\\"
    yield "a style", rf"\displaystyle {gold}"
    yield "bold", rf"\mathbf{{{gold}}}"
    yield "braces around", f"{{{gold}}}" if len(parts) == 1 else gold
    yield "spaces", f"  {gold}  "


def _same_value(gold: str, number: Fraction) -> Iterator[Spelling]:
    """Yields spellings of a number."""
    whole = number.denominator == 1
    if whole and abs(number) >= 1000:
        for comma in (",", "{,}", r"\,", r",\!"):
            yield "thousands", f"{int(number):,}".replace(",", comma)
    if number < 0:
        yield "a sign apart", f"- {gold[1:]}"
        yield "a wide sign", f"－{gold[1:]}"
    yield "a unit", rf"{gold}\text{{ cm}}"
    yield "a unit in words", rf"{gold} \text{{ square units}}"
    if whole:
        yield "a decimal", f"{gold}.0"
        yield "a fraction", rf"\frac{{{2 * int(number)}}}{{2}}"
        yield "a sum", f"{int(number) + 1}-1"
    else:
        yield "lowest terms", rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
        yield "other terms", rf"\frac{{{3 * number.numerator}}}{{{3 * number.denominator}}}"
        if abs(number) > 1:
            base, rest = divmod(abs(number), 1)
            sign = "-" if number < 0 else ""
            yield "a mixed number", rf"{sign}{base}\frac{{{rest.numerator}}}{{{rest.denominator}}}"
            yield "a plain mixed number", f"{sign}{base} {rest.numerator}/{rest.denominator}"
        if 10**12 % number.denominator == 0:
            yield "a decimal", f"{float(number):.12f}".rstrip("0")
    if number > 0:
        yield "a plus", f"+{gold}"
        yield "a currency", rf"\${gold}"


def _wrong(gold: str) -> Iterator[Spelling]:
    left, parts, right = elements(gold)
    number = value(gold)
    if len(parts) > 1:
        yield "an element dropped", left + ", ".join(parts[:-1]) + right
        yield "an element added", left + ", ".join([*parts, "977"]) + right
        if left in ("(", "[") and parts[0] != parts[1]:
            yield "another order", left + ", ".join([parts[1], parts[0], *parts[2:]]) + right
        if left in ("(", "["):
            yield "another bracket", {"(": "[", "[": "("}[left] + ", ".join(parts) + right
            yield "another end", left + ", ".join(parts) + {")": "]", "]": ")"}[right]
            yield "a set", "\\{" + ", ".join(parts) + "\\}"
        yield "one element", parts[0]
        yield "no separator", "".join(parts)
    if number is not None:
        yield from _other_value(gold, number)
    yield "a base dropped", re.sub(r"_\{?\d+\}?$", "", gold)
    yield "a base changed", re.sub(r"_\{?(\d+)\}?$", lambda m: f"_{{{int(m[1]) + 3}}}", gold)
    yield "the last digit", _digit(gold, last=True)
    yield "the first digit", _digit(gold, last=False)
    yield "a letter", _letter(gold)
    if re.search(r"\d *\\pi", gold):
        yield "pi dropped", re.sub(r"\s*\\pi", "", gold)
    yield "a root dropped", re.sub(r"\\sqrt\s*\{?(\d+)\}?", r"\1", gold)
    yield "an exponent", re.sub(r"\^(\d)", lambda m: f"^{(int(m[1]) + 1) % 10}", gold)
    yield "an inner sign", re.sub(r"(?<=[\w}]) ?([+-]) ?(?=[\w\\])", _flip, gold, count=1)
    name, equals, shown = gold.partition("=")
    if number == 0 or _is_words(gold) or len(parts) > 1 or re.search(r"cup|\\in|= *0$", gold):
        return
    front = f"{name}{equals}" if equals else ""
    shown = shown.strip() if equals else gold
    if re.search(r"text|mbox|circ|_", shown):
        return
    yield "a sign", f"{front}-({shown})"
    yield "doubled", f"{front}2({shown})"
    yield "halved", rf"{front}\frac{{{shown}}}{{2}}"
    yield "one more", f"{front}{shown}+1"
    yield "squared", f"{front}({shown})^2" if gold != "1" else gold
    yield "a variable more", f"{front}({shown})t"
    yield "a root", rf"{front}\sqrt{{{shown}}}" if gold != "1" else gold
    yield "imaginary", f"{front}({shown})i"


def _other_value(gold: str, number: Fraction) -> Iterator[Spelling]:
    """Yields other values than a number, 0 left out where it would be equal."""
    if number == 0:
        yield from (("one more", "1"), ("near", "0.001"), ("not", r"\neq 0"), ("a variable", "t"))
        return
    yield "a sign", gold[1:] if gold.startswith("-") else f"-{gold}"
    yield "a sign apart", f"- {gold}" if number > 0 else f"+ {gold[1:]}"
    yield "ten times", f"{gold}0" if number.denominator == 1 else rf"{gold}\cdot 10"
    yield "a variable", f"{gold}xy"
    yield "two answers", f"{gold}, 977"
    if number.denominator == 1:
        yield "near", f"{gold}.001"
        yield "a digit more", f"{gold}7"
        if abs(number) >= 1000:
            yield "two parts", f"{gold[:-3]}, {gold[-3:]}"
            if gold[-3] != "0":  # "(2,000)" is a number
                yield "a tuple", f"({gold[:-3]},{gold[-3:]})"
    else:
        if abs(number.numerator) != number.denominator:
            yield "upside down", rf"\frac{{{number.denominator}}}{{{number.numerator}}}"
        if Fraction(short := f"{float(number):.3g}") != number:
            yield "too few digits", short


def _digit(gold: str, *, last: bool) -> str:
    found = list(re.finditer(r"\d", gold))
    if not found:
        return gold
    at = found[-1 if last else 0]
    digit = str(int(at.group()) % 9 + 1)
    return gold[: at.start()] + digit + gold[at.end() :]


def _letter(gold: str) -> str:
    """Returns an answer whose first letter outside commands is another one."""
    text = re.search(r"(?<=\\text\{)\(?([A-Za-z])(?=[\w)]*\}$)", gold)
    at = text or re.search(r"(?<![\\a-zA-Z])([a-zA-Z])(?![a-zA-Z])", gold)
    if at is None:
        return gold
    start, letter = at.start(1), at.group(1)
    return gold[:start] + ("w" if letter.islower() else "W") + gold[start + 1 :]


def _flip(match: re.Match[str]) -> str:
    return " - " if match.group(1) == "+" else " + "


def judges() -> dict[str, Callable[[Sequence[tuple[str, str]]], list[bool]]]:
    """Returns each judge: the function of (spelling, gold) pairs that says which are right."""
    from math_verify import parse, verify

    from sdjax.graders import grader
    from sdjax.graders.workers.grade_batch import Attempt

    def rule(name: str) -> Callable[[Sequence[tuple[str, str]]], list[bool]]:
        grade = grader(name)
        return lambda pairs: [
            one.correct for one in grade([Attempt(rf"\boxed{{{p}}}", g) for p, g in pairs])
        ]

    def library(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [verify(parse(f"${g}$"), parse(rf"\boxed{{{p}}}")) for p, g in pairs]

    names = ("math", "math_reference", "math_eval_reference")
    return {**{name: rule(name) for name in names}, "math-verify": library}


def main() -> None:
    """Prints the table of docs/graders.md."""
    versions = ("math-verify", "latex2sympy2_extended", "sympy")
    print(", ".join(f"{name} {metadata.version(name)}" for name in versions))
    known = judges()
    print("| answers | golds | spellings |", " | ".join(known), "|")
    for name, every in golds().items():
        found = every[::STEP]
        for kind, spell in (("equivalent", equivalent), ("wrong", wrong)):
            pairs = [(text, gold) for gold in found for _, text in spell(gold)]
            right = [sum(judge(pairs)) for judge in known.values()]
            print(
                f"| {name} | {len(found)} | {len(pairs)} {kind} |",
                *(f"{n} |" for n in right),
                flush=True,
            )


if __name__ == "__main__":
    main()
