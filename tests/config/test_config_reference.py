"""docs/reference/config.md is what the dataclasses of sdjax.config say."""

import runpy

import pytest
from paths import ROOT

from sdjax.config.load import job_classes

DEV = ROOT / "dev"


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(str(DEV / "config_reference.py"))


def test_the_committed_page_is_the_generated_one(reference):
    same = reference["PAGE"].read_text(encoding="utf-8") == reference["page"]()
    assert same, f"the config docstrings changed: run {reference['COMMAND']} and commit the page"


def test_every_field_has_a_meaning(reference):
    empty = [line for line in reference["page"]().splitlines() if line.endswith("|  |")]
    assert empty == []


def test_the_page_lists_every_job_and_inherited_docstrings(reference):
    page = reference["page"]()
    assert [job.__name__ for job in job_classes() if f"### {job.__name__}\n" not in page] == []
    assert "| `top_p` | float | 0.95 | Draws from" in page
    assert "KL(teacher \\|\\| student)" in page
