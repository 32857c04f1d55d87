"""Lists sentences over 30 words, and refused phrases, in Markdown pages and docstrings.

    python dev/plain_english.py [FILE or FOLDER ...]

Without arguments it reads all pages and packages that the tests check. It prints one line per
offence and the number of offences per room. The exit code is 1 if there are any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 30
REFUSED = ("of its own", "Returns what", "No jax.")
"""Phrases that no docstring may hold."""
PAGES = ("README.md", "CONTRIBUTING.md", "docs")
CODE = ("sdjax", "configs", "dev")

_ABBREVIATIONS = {"e.g.", "i.e.", "vs.", "cf.", "al.", "etc.", "eq.", "eqs.", "sec.", "fig.", "no."}
_BULLET = re.compile(r"^\s*(?:[*+-]|\d+[.)])\s+")
_NAME = re.compile(r"^\*{0,2}\w+(?: \([^)]*\))?:\s+")
_SECTION = re.compile(r"(?:Args|Returns|Raises|Yields|Attributes|Example|Examples):\s*$")


@dataclass(frozen=True, kw_only=True)
class Offence:
    """A sentence that is too long or that holds a refused phrase."""

    file: Path
    line: int
    problem: str
    sentence: str

    def __str__(self) -> str:
        """Returns one line for the terminal."""
        where = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        return f"{where}:{self.line}: {self.problem}: {self.sentence}"


def files(*names: str) -> list[Path]:
    """Returns the Markdown and Python files of these files and folders, relative to the root."""
    found = []
    for path in (ROOT / name for name in names):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [p for p in inside if p.suffix in (".md", ".py") and p.is_file()]
    return found


def offences(file: Path) -> Iterator[Offence]:
    """Yields the offences of a Markdown page or of the docstrings of a Python file."""
    text = file.read_text(encoding="utf-8")
    is_page = file.suffix == ".md"
    for line, unit in _page_units(text) if is_page else _docstring_units(text):
        for sentence in sentences(unit):
            if (number := words(sentence)) > LONGEST:
                yield Offence(file=file, line=line, problem=f"{number} words", sentence=sentence)
            for phrase in () if is_page else REFUSED:
                if re.search(rf"(?<!\w){re.escape(phrase)}", sentence):
                    problem = f'says "{phrase}"'
                    yield Offence(file=file, line=line, problem=problem, sentence=sentence)


def sentences(text: str) -> Iterator[str]:
    """Yields the sentences of a paragraph; one may begin with a lower-case name or a number."""
    current: list[str] = []
    tokens = text.split()
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        current.append(token)
        bare = token.rstrip(")]\"'*_”’")
        is_end = bare.endswith((".", "!", "?")) and bare.lower().lstrip("(") not in _ABBREVIATIONS
        if bare.endswith("..."):  # an ellipsis may stand inside a sentence
            is_end = following[:1].isupper()
        if is_end:
            yield " ".join(current)
            current = []
    if current:
        yield " ".join(current)


def words(sentence: str) -> int:
    """Returns the number of words; a code span, an address or a path is one, a sign none."""
    sentence = re.sub(r"(`+).+?\1", "code", sentence)
    return sum(any(c.isalnum() for c in token) for token in sentence.split())


def _page_units(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) for each paragraph, list item, heading and table cell of a page."""
    text = re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[a-zA-Z/][^<>\n]*>", "", text)
    start, unit, fence, in_list, blank = 0, "", "", False, True
    for number, line in enumerate(text.splitlines(), 1):
        indent, stripped = len(line) - len(line.lstrip()), line.strip()
        # A wrapped line may begin with a number and a full stop, which is no list.
        is_bullet = bool(_BULLET.match(line)) and (blank or in_list or not stripped[0].isdigit())
        mark = re.match(r"```+|~~~+", stripped)
        if mark or fence:
            fence = "" if fence and mark and stripped == fence else fence or (mark or [""])[0]
            stripped = ""
        elif indent >= (6 if in_list else 4) and blank and not is_bullet:
            stripped = ""  # an indented block of code
            yield from _unit(start, unit)
            unit = ""
            continue
        if stripped and indent == 0 and not is_bullet and blank:
            in_list = False
        if not stripped or is_bullet or stripped.startswith(("#", "|")):
            yield from _unit(start, unit)
            unit = ""
        blank = not stripped
        in_list = in_list or is_bullet
        if stripped.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", stripped.strip("|")):
                yield from _unit(number, cell)
        elif stripped:
            start = start if unit else number
            text = stripped.lstrip("#> ")
            unit += " " + (_BULLET.sub("", text) if is_bullet else text)
    yield from _unit(start, unit)


def _unit(line: int, text: str) -> Iterator[tuple[int, str]]:
    if text.strip():
        yield line, text.strip()


def _docstring_units(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) for each paragraph and argument of the docstrings of Python code."""
    for node in ast.walk(ast.parse(source)):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            for statement in body if isinstance(body, list) else ():
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        for offset, unit in _paragraphs(text):
                            yield statement.lineno + offset, unit


def _paragraphs(docstring: str) -> Iterator[tuple[int, str]]:
    """Yields (offset of the line, text) without indented code; each argument is one unit."""
    first, *rest = docstring.expandtabs().splitlines() or [""]
    margin = min((len(x) - len(x.lstrip()) for x in rest if x.strip()), default=0)
    start, unit, in_section, entry = 0, "", False, 0
    for offset, line in enumerate([first.strip(), *(x[margin:] for x in rest)]):
        indent, stripped = len(line) - len(line.lstrip()), line.strip()
        if _SECTION.match(line):
            yield from _unit(start, unit)
            unit, in_section, entry = "", True, 0
            continue
        in_section = in_section and (indent > 0 or not stripped)
        entry = entry or indent
        is_entry = in_section and indent <= entry
        is_code = indent > 0 and not in_section and not _BULLET.match(line)
        if not stripped or is_entry or _BULLET.match(line) or is_code:
            yield from _unit(start, unit)
            unit = ""
        if stripped and not is_code:
            start = start if unit else offset
            text = _BULLET.sub("", stripped)
            unit += " " + (_NAME.sub("", text) if is_entry else text)
    yield from _unit(start, unit)


def room(file: Path) -> str:
    """Returns the part of the repository that a file belongs to: sdjax/learner, docs, ..."""
    parts = file.relative_to(ROOT).parts
    return "/".join(parts[:2] if parts[0] == "sdjax" else parts[:1])


def main(names: list[str]) -> int:
    """Prints the offences of these files and their number per room; returns the exit code."""
    found = [one for file in files(*(names or (*PAGES, *CODE))) for one in offences(file)]
    for one in found:
        print(one)
    for name, number in sorted(Counter(room(one.file) for one in found).items()):
        print(f"{number:6} {name}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
