"""A message names a field of a section with its section: rollout.top_k, never top_k alone."""

import ast
import dataclasses
import re
import typing

import pytest
from paths import ROOT

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.tasks.math import Math

JOBS = typing.get_args(config.Job)
SECTIONS = [
    cls
    for cls in vars(config).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in JOBS
]
OF_JOBS = {field.name for job in JOBS for field in dataclasses.fields(job)}
OF_SECTIONS = {field.name for section in SECTIONS for field in dataclasses.fields(section)}
ONLY_THERE = OF_SECTIONS - OF_JOBS
# Fields of a model's config.json and files of a tokenizer have the same names, but no section.
OTHERS = ("sdjax/models/",)
SAYING = ("UserError", "WriteError", "RowError", "require", "require_one", "require_seed")


def text(node):
    """Returns the text of an argument, with {} for what is only known when the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.BinOp | ast.IfExp):
        sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.body, node.orelse)
        return " ".join(map(text, sides))
    return "{}"


def bare(message):
    """Returns the fields of sections that a message names without their section."""
    names = set(re.findall(r"(?<![.\w/}-])[a-z]+(?:_[a-z0-9]+)+(?![\w(/]|\.\w)", message))
    names |= set(re.findall(r"^([a-z0-9_]+)(?: is |$)", message))
    return sorted(names & ONLY_THERE)


def messages():
    """Yields (file and line, text) for each text that an error of users is made of."""
    for path in sorted((ROOT / "sdjax").rglob("*.py")):
        place = str(path.relative_to(ROOT))
        if place.startswith(OTHERS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                for argument in node.args if called in SAYING else ():
                    yield f"{place}:{node.lineno}", text(argument)


def test_no_message_names_a_field_without_its_section():
    found = list(messages())
    assert len(found) > 500
    assert [(place, said) for place, said in found if bare(said)] == []


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("lower max_completion_tokens, or x", ["max_completion_tokens"]),
        ("microbatch is {}: must divide", ["microbatch"]),
        ("rollout.max_completion_tokens is {}; set optim.row_tokens", []),
        ("max_tokens is {}: every one is longer", []),  # a field of SFT
        ("{}top_p", []),
    ],
)
def test_a_bare_field_is_found(message, names):
    assert bare(message) == names


def test_an_error_of_an_out_of_domain_task_names_its_fields_there():
    nothing, at = Math(train="", test=""), "out_of_domain.far"
    with pytest.raises(UserError, match=r"^task.train is '': .* for task.test with task.held_out"):
        tasks.load(nothing, config.Data())
    with pytest.raises(UserError, match=rf"^{at}.train is '': .* for {at}.test with {at}.held_out"):
        tasks.load_others({"far": nothing}, config.Data())
