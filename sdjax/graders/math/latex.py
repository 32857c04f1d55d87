"""Rewrites a short LaTeX answer in one spelling, without a change of its parts or its meaning."""

from __future__ import annotations

import re
import unicodedata

from sdjax.graders.answer import currency

# Longer texts are cut, because they are not answers and some patterns below are slow on them.
MAX_LENGTH = 2000
# Stands for a comma that may separate thousands or two answers, as in "58,500".
COMMA = "\u2063"

MINUS_SIGNS = "\u2212\u2013\u2014\u2012\u2010\u2011\ufe63\uff0d"
_SYMBOLS = {
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/", "\u2215": "/",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u03c0": r"\pi ",
    "\u03b8": r"\theta ",
    "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u2248": r"\approx ", "\u222a": r"\cup ",
    "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u00b1": r"\pm ",
    "\u211d": r"\mathbb{R} ", "\u2124": r"\mathbb{Z} ", "\u2115": r"\mathbb{N} ",
    "\u211a": r"\mathbb{Q} ", "\u2102": r"\mathbb{C} ", "\u27e8": r"\langle ",
    "\u27e9": r"\rangle ", "\u2026": r"\ldots ", "\u3002": ".", "\uff0c": ",", "\u3001": ", ",
}  # fmt: skip
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_TRANSLATION = str.maketrans(
    _SYMBOLS
    | {chr(k): chr(v) for k, v in _FULL_WIDTH.items()}
    | dict.fromkeys(MINUS_SIGNS, "-")
    | dict.fromkeys(currency.SIGNS, "")
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_VULGAR = re.compile("[¼½¾⅐-⅞]")

FONT_NAMES = "text|textbf|textit|textrm|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|"
FONT_NAMES += "boldsymbol|bm|operatorname|underline|boxed|fbox"
_COLOUR = re.compile(r"\\(?:textcolor|color|mathcolor|colorbox)\s*(?:\[\w*\])?\s*\{[\w!. -]*\}")
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|bf|it|rm|sf|tt|tiny|small|normalsize|"
    r"large|Large|LARGE|huge|Huge|centering|checkmark)(?![a-zA-Z])"
)
_SIZING = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?(?=\s*[()\[\]{}|\\]|\s|$)"
)
_NOTHING = re.compile(r"(?<!\\)\\!|\\(?:phantom|hphantom|vphantom|label|tag)\s*\{[^{}]*\}")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:> ]|\\(?:q?quad|thinspace|enspace|space|nobreak|newline|par)(?![a-zA-Z])"
    r"|\\[hm]space\*?\s*\{[^{}]*\}|~"
)
_JOINT = r"\s*(?:\{,\}|,\s*\\!|(?<!\\)\\[,;:! ]|~|\s)\s*"
_THOUSANDS = re.compile(rf"(?<![\d.])(\d{{1,3}})((?:{_JOINT}\d{{3}})+)(?!\d|\s*/)")
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,\w])([1-9]\d{0,2})((?:,\d{3})+)(?!\d|,\d)")
# "(1,500,2,500)" may be a pair.
_PAIRS = re.compile(
    r"(?<=[(\[{])\s*-?[1-9]\d{0,2},\d{3}(?:,\s*-?[1-9]\d{0,2},\d{3})+(?=\s*\\?[)\]}])"
)
# 1e+16 as a program prints it; "2e-1" may be an expression in Euler's number.
_PRINTED_POWER = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]\+?(-?)0*(\d{2,3})(?![\w.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_MONEY = re.compile(
    rf"(?<![a-zA-Z\\])(?:(?:US\s|{'|'.join(currency.DOLLARS)})(?=\\?\$\s?[-\d.])"
    rf"|(?:{'|'.join(currency.CODES)})\s?(?=[-\d.]))"
)
_SYSTEM = re.compile(
    r"(?:\\left)?\s{0,9}(?:\\\{|\\lbrace)?\s{0,9}"
    r"\\begin\s{0,9}\{(cases|array|aligned|align\*?|gathered|gather\*?|split)\}"
    r"(?:\s{0,9}\{[^{}]*\})?(.*?)\\end\s{0,9}\{\1\}\s{0,9}(?:\\right\s{0,9}\.)?",
    re.DOTALL,
)
_LINE_END = re.compile(r"\\\\(?:\s*\[[^\[\]]*\])?|\n|\\q?quad(?![a-zA-Z])")
_EQUATION = re.compile(r"[^&=<>\n]*[^&=<>\s]\s*&?=&?\s*[^&=<>\s][^&=<>\n]*")
_CONJUNCTION = re.compile(
    r"\s*,?\s*(?:\\(?:text|textrm|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|\\(?:land|lor)(?![a-zA-Z])"
    r"|\b(?:and|or)\b)\s*"
)
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}")
_LONE_MINUS = re.compile(r"\{\s?-\s?\}(?=\s?[\d.\\a-z])")
# An angle in degrees is a part of a function; alone, its sign does not matter.
_ANGLE = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc)\s?(\(?)\s?(\d+(?:\.\d+)?)\s?\^\s?(?:\\circ(?![a-z])|\{\s?\\circ\s?\})"
)
_BUILDER = re.compile(
    r"\\\{\s?([a-zA-Z])\s?(?:\\in\s?\\mathbb\{R\}\s?)?(?:\\mid|\\vert|\\colon|[:|])\s?(.*?)\s?\\\}"
)
_ARGUMENTS = re.compile(r"\\(frac|binom|sqrt)(?![a-zA-Z])")
_SHORT_INDEX = re.compile(r"_\s*(\w)(?!\w)|_\s*\{\s*(?:\\text\s*\{)?\s*(\w+)\s*\}{1,2}")
_SYNONYMS = (
    (re.compile(r"\\(?:[dtc]|nice|s)frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\leq(?:slant)?(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\(?:bar|overbar)(?=\s*\{?\s*\d)"), r"\\overline"),
    (re.compile(r"\\(?:dots|cdots|dotsc)(?![a-zA-Z])|\.{3}"), r"\\ldots "),
    (re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\(?:Reals|R|(?:mathbf|Bbb)\s*\{?R\}?)(?![a-zA-Z])"), r"\\mathbb{R}"),
    (re.compile(r"\\mathbb\s*([A-Z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\(begin|end)\{(?:b|v|B|small)?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"\\[lr]brace(?![a-zA-Z])\s*"), lambda m: "\\{" if m.group()[1] == "l" else "\\}"),
    (re.compile(r"\\l(?:paren|angle)(?![a-zA-Z])\s*"), "("),
    (re.compile(r"\\r(?:paren|angle)(?![a-zA-Z])\s*"), ")"),
    (re.compile(r"\\lbrack(?![a-zA-Z])\s*"), "["),
    (re.compile(r"\\rbrack(?![a-zA-Z])\s*"), "]"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])"), r"\\infty"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
)  # fmt: skip

_WORDS = dict.fromkeys(("all real numbers", "all reals", "real numbers"), r"\mathbb{R}") | (
    dict.fromkeys(("no solution", "no solutions", "no real solutions", "empty set"), r"\emptyset")
)


def spell(answer: str) -> str:
    r"""Returns an answer in one spelling; its lists, names and units are left as they are.

    "\dfrac12 \text{ cm}" becomes "\frac{1}{2} \text{ cm}", "x = 1{,}000." becomes "x = 1000" and
    "\textcolor{red}{27}\\" becomes "27". Money signs go. A comma that may separate thousands
    becomes COMMA.
    """
    text = _characters(_one_line(answer[:MAX_LENGTH]))
    text = _PRINTED_POWER.sub(r"\1\\times 10^{\2\3}", _TIMES_TEN.sub(r"\\times ", text))
    text = _COLOUR.sub("", text)
    text = _SIZING.sub("", _STYLE.sub(" ", text))
    # Some patterns below take quadratic time on runs of spaces.
    text = re.sub(r"\s+", " ", text)
    text = _MONEY.sub("", text).replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = _THOUSANDS.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)
    text = _SPACING.sub(" ", _NOTHING.sub("", text))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", _OVER.sub(r"\\frac{\1}{\2}", text))
    text = _ANGLE.sub(_radians, _LONE_MINUS.sub("-", text))
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = _condition(unwrapped(_ends(text)))
    text = _conjunctions(_marked(text))
    text = with_arguments(text)
    text = _SHORT_INDEX.sub(lambda m: "_{" + (m.group(1) or m.group(2)) + "}", text)
    text = re.sub(r"(\d)_\{10\}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    return _WORDS.get(text.lower(), text)


def tight(text: str) -> str:
    """Returns a text whose only spaces are between two words or two numbers."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(
        r"(?<![a-zA-Z\d]) | (?![a-zA-Z\d])|(?<=\d) (?=[a-zA-Z])|(?<=[a-zA-Z]) (?=\d)", "", text
    )


def _radians(match: re.Match[str]) -> str:
    function, opened, degrees = match.groups()
    angle = rf"\frac{{{degrees}\pi}}{{180}}"
    return rf"\{function}({angle}" + ("" if opened else ")")


def _condition(text: str) -> str:
    r"""Returns the inequality of a set that is described by one, such as \{x \mid x > 3\}."""
    match = _BUILDER.fullmatch(text)
    holds = match is not None and re.search(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])", match.group(2))
    return match.group(2) if match and holds else text


def unwrapped(text: str) -> str:
    r"""Returns a text without one font command, markup or pair of braces around all of it."""
    for _ in range(4):
        match = re.match(rf"\\(?:{FONT_NAMES})\s*(?=\{{)|(?=\{{)", text)
        if match and argument(text, match.end())[1] == len(text):
            inner = text[match.end() + 1 : -1]
            if not match.group() and _is_list(inner):
                return text  # {1,2} is a set
            text = _ends(inner)
        elif len(text) > 4 and text.startswith("**") and text.endswith("**"):
            text = _ends(text[2:-2])
        else:
            return text
    return text


def _is_list(text: str) -> bool:
    """Returns whether a comma stands outside all brackets."""
    depth = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            return True
    return False


def argument(text: str, start: int, *, digits: bool = False) -> tuple[str, int]:
    r"""Returns the argument of a command that begins at `start`, without braces, and its end.

    "{12}", "1" and "\pi" are arguments; with `digits`, all of "12" is one. The argument is "" and
    the end is `start` if there is none.
    """
    begin = start
    while begin < len(text) and text[begin] == " ":
        begin += 1
    if text[begin : begin + 1] != "{":
        match = re.compile(r"\d+|\\?[a-zA-Z]" if digits else r"\d|[a-zA-Z]|\\[a-zA-Z]+").match(
            text, begin
        )
        return (match.group(), match.end()) if match else ("", start)
    depth = 0
    for i in range(begin, len(text)):
        if text[i] in "{}" and text[i - 1 : i] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[begin + 1 : i], i + 1
    return "", start


def with_arguments(text: str) -> str:
    r"""Returns a text whose fractions, binomials and roots have braces around each argument."""
    for match in reversed(list(_ARGUMENTS.finditer(text))[:200]):
        end, arguments, root = match.end(), "", match.group(1) == "sqrt"
        index = re.compile(r"\s*\[[^\[\]]*\]").match(text, end) if root else None
        if index:
            arguments, end = index.group().strip(), index.end()
        for _ in range(1 if root else 2):
            inner, after = argument(text, end, digits=root)
            if after == end:
                break
            arguments, end = f"{arguments}{{{inner.strip()}}}", after
        else:
            text = text[: match.end()] + arguments + text[end:]
    return text


def _characters(text: str) -> str:
    """Returns a text without control characters, direction marks and lone surrogates."""
    if text.isascii() and text.isprintable():
        return text
    text = _VULGAR.sub(lambda m: _vulgar(m.group()), text)
    text = re.sub(f"[{_RAISED}]+", lambda m: "^{" + _plain_digits(m.group()) + "}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda m: "_{" + _plain_digits(m.group()) + "}", text)
    text = re.sub(r"([√∛])\s*(\((?:[^()]|\([^()]*\))*\)|\{[^{}]*\}|[\d.]*\d|\w)?", _root, text)
    text = text.translate(_TRANSLATION).replace(COMMA, "")
    return "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )


def _plain_digits(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_TRANSLATION)


def _vulgar(character: str) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
    return rf" \frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    inside = match.group(2) or ""
    if inside[:1] in ("(", "{"):
        inside = inside[1:-1]
    index = "[3]" if match.group(1) == "∛" else ""
    # A root without an argument is a command, whose argument may be one.
    return rf"\sqrt{index}{{{inside}}}" if inside else rf"\sqrt{index} "


def _ends(text: str) -> str:
    """Returns a text without spaces, line ends and full stops at its ends."""
    text = text.strip().lstrip(": ")
    while True:
        shorter = text.rstrip(" .,;:")
        # One backslash is left of a spacing command, two end a line.
        shorter = shorter.removesuffix("\\\\").removesuffix("\\")
        if shorter == text:
            return text
        text = shorter


def _conjunctions(text: str) -> str:
    return _CONJUNCTION.sub(", ", text).strip(" ,")


def _one_line(text: str) -> str:
    """Returns a system of equations, one per line, as a list; another text as it is."""
    system = _SYSTEM.fullmatch(text.strip().strip("$"))
    lines = _LINE_END.split(system.group(2) if system else text)
    lines = [line for line in map(_line, lines) if line]
    if len(lines) < 2 or not all(map(_EQUATION.fullmatch, lines)):
        return text
    return ", ".join(line.replace("&", "") for line in lines)


def _line(text: str) -> str:
    """Returns a line of a system without what joins it to the next one."""
    text = re.sub(r"(?:\\text ?\{ ?and ?\}|\band)$", "", text.strip(" \t\r$,;"))
    return text.rstrip(" ,;")


def _marked(text: str) -> str:
    """Returns a text in which each comma that may separate thousands is COMMA.

    Inside brackets, "(1,200)" is a pair. A comma separates thousands there if three digits that
    begin with 0 follow it, or if the brackets hold several elements even so.
    """
    text = _PAIRS.sub(lambda m: re.sub(r"(\d),(\d{3})(?=,|$)", rf"\1{COMMA}\2", m.group()), text)
    inside = _innermost(text)

    def mark(match: re.Match[str]) -> str:
        number, around = match.group(), inside[match.start()]
        rest = None if around is None else _COMMA_THOUSANDS.sub("", text[slice(*around)])
        thousands = rest is None or ",0" in number or "," in rest or ";" in rest
        return number.replace(",", COMMA) if thousands else number

    return _COMMA_THOUSANDS.sub(mark, text)


def _innermost(text: str) -> list[tuple[int, int] | None]:
    """Returns for each character the start and end of what its innermost brackets hold."""
    opened: list[int] = []
    starts: list[int | None] = []
    ends: dict[int, int] = {}
    for i, c in enumerate(text):
        closing = c in ")]" or (c == "}" and (text[i - 1] == "\\" or text[0] == "{"))
        if opened and closing:
            ends[opened.pop()] = i
        starts.append(opened[-1] if opened else None)
        if c in "([" or (c == "{" and (i == 0 or text[i - 1] == "\\")):
            opened.append(i + 1)
    return [None if start is None else (start, ends.get(start, len(text))) for start in starts]
