"""Finds the part of a completion that states its answer, in time linear in its length."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# \boxed 8: a sign, a number, a fraction or one letter, but no word of a sentence.
_BARE_BOX = re.compile(
    r"(?<!\\)\\(?:boxed|fbox)(?:(?=[\d\\+-])|[ \t]+)"
    r"(?=[-+]?\s?(?:[\d.]|\\(?:[dt]?frac|sqrt|text|pi|infty|\$)|[a-zA-Z](?![a-zA-Z ])))"
    r"(?=([^\n$]{1,200}))"
)


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...} or \fbox{...} with balanced braces, or None.

    Escaped braces do not count. A box that never closes is ignored. A text without such a box may
    have one without braces, as in "$\boxed 8$".
    """
    open_braces: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for match in _BOX.finditer(text):
        token = match.group()
        if token == "}":
            if open_braces:
                start, is_box = open_braces.pop()
                if is_box and (best is None or start > best[0]):
                    best = (start, match.start())
        elif token[-1] == "{" and token != "\\{":
            open_braces.append((match.end(), len(token) > 1))
    return _bare_box(text) if best is None else text[best[0] : best[1]]


def _bare_box(text: str) -> str | None:
    r"""Returns the word, or the rest of the formula, after the last \boxed without braces."""
    contents = [(match.group(1), match.end(1)) for match in _BARE_BOX.finditer(text)]
    if not contents:
        return None
    content, end = contents[-1]
    if text[end : end + 1] != "$":
        content = re.split(r"\s|\\[)\]]|\*\*", content.lstrip(), maxsplit=1)[0].rstrip(".,;:!?")
    depth = 0
    for i, c in enumerate(content):
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth < 0:
            return content[:i].strip()
    return content.strip()


def last_tagged(text: str, tag: str) -> str | None:
    """Returns the stripped content of the last <tag>...</tag>, or None."""
    start = text.rfind(f"<{tag}>", 0, max(text.rfind(f"</{tag}>"), 0))
    if start < 0:
        return None
    return text[start + len(tag) + 2 : text.find(f"</{tag}>", start)].strip()


def after_thinking(text: str) -> str:
    """Returns the text after the last </think>, or the whole text."""
    return text.rpartition("</think>")[2]


def stated_answer(text: str) -> str | None:
    r"""Returns the content of the last <answer> after the thinking, else of the last \boxed{...}.

    A box inside the <answer> counts in place of the words around it.
    """
    answer = after_thinking(text)
    tagged = last_tagged(answer, "answer")
    boxed = last_boxed(answer if tagged is None else tagged)
    return tagged if boxed is None else boxed
