"""Splits a spelled answer into its parts: lists, tuples, intervals, sets, names, matrices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdjax.graders.math.latex import COMMA, FONT_NAMES, tight

_OPENING = {"(": 1, "[": 1, "{": 1}
_CLOSING = {")": 1, "]": 1, "}": 1}
_BRACKETS = (("\\{", "\\}", "{}"), ("(", ")", "()"), ("[", "]", "[]"), ("(", "]", "(]"),
             ("[", ")", "[)"), ("{", "}", "{}"))  # fmt: skip
_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{\w+\})?(?:'*|\^\{-1\})(?:\((?:[a-zA-Z,]*|-?[\d.]+)\))?|\\(?:angle|triangle|overline)\s*\{?[A-Z]+\}?"
)
_AT_NUMBER = re.compile(r"[^()]+\(-?[\d.]+\)")
_FUNCTION = re.compile(r"[a-zA-Z](?:\([a-zA-Z]\))|y")
_SIGN = re.compile(r"\\approx(?![a-zA-Z])|\\in(?![a-zA-Z])|(?<![<>!:])=(?!=)")


@dataclass(frozen=True)
class Listing:
    r"""Several answers: their brackets ("", "(]", "{}", ...) and elements.

    `ordered` says whether the order of the elements matters.
    """

    brackets: str
    elements: tuple[str, ...]
    ordered: bool


@dataclass(frozen=True)
class Named:
    """A value and the name of its unknown, such as "x"; the name is "" where there is none."""

    name: str
    value: str


def split(text: str, separators: str = ",") -> list[str]:
    """Returns the parts between the separators that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += _OPENING.get(c, 0) - _CLOSING.get(c, 0)
        if c in separators and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def items(text: str) -> list[str]:
    """Returns the elements of a list without brackets: those between ";" if it has any, or ","."""
    return parts if len(parts := split(text, ";")) > 1 else split(text)


def listing(text: str) -> Listing | None:
    r"""Returns the elements of "1,2", "(1,2]" or "\{1,2\}", or None for a single answer."""
    if re.fullmatch(r"\].*[\[\]]|[\[\]].*\[", text):  # French intervals: ]1,2[ is (1,2).
        text = ("(" if text[0] == "]" else "[") + text[1:-1] + (")" if text[-1] == "[" else "]")
    for left, right, brackets in _BRACKETS:
        if text.startswith(left) and text.endswith(right) and _encloses(text, left, right):
            elements = items(text[len(left) : -len(right)])
            if brackets == "{}" and len(elements) > 0 and (left == "\\{" or len(elements) > 1):
                return Listing(brackets, tuple(_both_signs(elements)), ordered=False)
            return Listing(brackets, tuple(elements), ordered=True) if len(elements) > 1 else None
    elements = _both_signs(items(text))
    return Listing("", tuple(elements), ordered=False) if len(elements) > 1 else None


def _encloses(text: str, left: str, right: str) -> bool:
    """Returns whether the first bracket closes only at the end."""
    depth = 0
    for c in text[len(left) : len(text) - len(right)]:
        depth += _OPENING.get(c, 0) - _CLOSING.get(c, 0)
        if depth < 0:
            return False
    return depth == 0


def _both_signs(elements: list[str]) -> list[str]:
    r"""Returns the elements, with both readings of each that has one \pm."""
    both = []
    for element in elements:
        before, sign, after = element.partition("\\pm")
        if sign and "\\pm" not in after:
            both += [f"{before}+{after}" if before.strip() else after, f"{before}-{after}"]
        else:
            both.append(element)
    return both


def named(text: str) -> list[Named]:
    r"""Returns the elements of an answer without brackets, each with its name.

    "x=1, y=2" and "(x,y) = (1,2)" have two, "x = 5, 6" has two of name x, and "\frac{10}{2}" has
    one without a name.
    """
    found = [_named(part) for part in items(text)] or [Named("", text)]
    if len(found) == 1 and found[0].name.startswith("("):
        names, values = listing(found[0].name), listing(found[0].value)
        if names and values and len(names.elements) == len(values.elements):
            pairs = zip(names.elements, values.elements, strict=True)
            return [Named(tight(name), value) for name, value in pairs]
        return [Named("", text)]
    first = found[0].name
    if any(one.name for one in found):
        found = [Named(one.name, value) for one in found for value in _both_signs([one.value])]
    if first and len(found) > 1 and not any(one.name or "=" in one.value for one in found[1:]):
        return [Named(first, one.value) for one in found]
    return found


def _named(part: str) -> Named:
    signs = list(_SIGN.finditer(part))
    if not signs or re.search(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]", part):
        return Named("", part)
    name, value = part[: signs[0].start()], part[signs[-1].end() :]
    between = part[signs[0].end() : signs[-1].start()]
    if len(signs) == 1 and not is_name(_bare(name)) and is_name(_bare(value)):
        if not re.search(r"[a-zA-Z]", name):  # 5 = x
            name, value = value, name
    name = _bare(name)
    if not name and value.strip() and signs[0].group().startswith("\\approx"):
        return Named("", value.strip())
    tuple_name = re.fullmatch(r"\((?:[^(),]+,)+[^(),]+\)", name)
    if not value.strip() or not (is_name(name) or tuple_name) or "," in between:
        return Named("", part)
    return Named("" if _is_description(name) else name, value.strip())


def _bare(name: str) -> str:
    return tight(re.sub(rf"\\(?:{FONT_NAMES})\s*\{{([^{{}}]*)\}}", r"\1", name)).replace(" ", "")


def is_name(text: str) -> bool:
    """Returns whether a text without spaces may stand for an unknown, such as "x_{1}" or "f(x)"."""
    return _NAME.fullmatch(text) is not None


def _is_description(name: str) -> bool:
    """Returns whether a name is a word, such as "Area", which another answer may leave out."""
    return re.fullmatch(r"[A-Za-z][a-z]{2,}", name) is not None and bool(set(name) & set("aeiou"))


def same_name(ours: str, theirs: str) -> bool:
    """Returns whether two names may stand for one unknown; f(x) and y do."""
    if ours == theirs:
        return True
    functions = _FUNCTION.fullmatch(ours) and _FUNCTION.fullmatch(theirs)
    return functions is not None and "y" in (ours, theirs)


def is_at_number(name: str) -> bool:
    """Returns whether a name is that of a function's value at a number, such as "f(3)"."""
    return _AT_NUMBER.fullmatch(name) is not None


def union(text: str) -> list[str] | None:
    r"""Returns the parts between the \cup of an answer, or None without one."""
    parts = re.split(r"\\cup(?![a-zA-Z])", text)
    return [part.strip() for part in parts] if len(parts) > 1 else None


def is_interval(found: Listing) -> bool:
    """Returns whether only an interval has these brackets or ends, so that brackets must stand."""
    infinite = any("\\infty" in element for element in found.elements)
    return len(found.elements) == 2 and (found.brackets in ("(]", "[)") or infinite)


def matrix(text: str) -> list[list[str]] | None:
    r"""Returns the entries of one \begin{pmatrix}...\end{pmatrix}, or None."""
    match = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text.strip(), re.DOTALL)
    if match is None or "\\begin" in match.group(1):
        return None
    rows = re.sub(r"\\\\\s*$", "", match.group(1)).split("\\\\")
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def readings(text: str) -> tuple[str, ...]:
    """Returns the readings of COMMA: "58,500" is a number, and it may be two."""
    return (text.replace(COMMA, ""), text.replace(COMMA, ", ")) if COMMA in text else (text,)
