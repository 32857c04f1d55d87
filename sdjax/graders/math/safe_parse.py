"""Parses an expression with sympy, safely: sympy's own parser runs any Python in the text."""

from __future__ import annotations

import re
from typing import Any

import sympy
from sympy.parsing.sympy_parser import parse_expr

# A text without attributes, strings, subscripts, lambdas and dunders cannot reach the system.
_UNSAFE = re.compile(r"__|[\"'`@\[\];:\\]|\.\s*[A-Za-z_]|\blambda\b")
_NAMES: dict[str, Any] = {
    name: getattr(sympy, name)
    for name in (
        "Symbol Integer Float Rational Function factorial factorial2 sqrt Abs sin cos tan asin "
        "acos atan sinh cosh tanh log ln exp pi E I oo binomial"
    ).split()
} | {"__builtins__": {}}


def parse(text: str, local_dict: dict[str, Any] | None = None, **_: Any) -> Any:
    """Returns a sympy expression; raises ValueError for a text that could be anything else."""
    if _UNSAFE.search(text):
        raise ValueError("not a plain expression")
    return parse_expr(text, local_dict=local_dict, global_dict=dict(_NAMES))
