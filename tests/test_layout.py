"""Where tests lie: each in the folder of what it tests, and what they share in tests/support."""

import ast
import re

from paths import ROOT

TESTS = sorted((ROOT / "tests").glob("**/test_*.py"))
HELPERS = sorted((ROOT / "tests").glob("**/*.py"))
# Tests of the whole repository; test_tokenizer.py and the like are of a module beside the packages.
WHOLE = {"test_docs", "test_imports", "test_layout", "test_plain_english", "test_readme"}
OUTSIDE = re.compile(r'parents\[3\]|parents\[2\]\.parent|ROOT\.parent|\.\./shared|"shared"')


def named(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Returns the names of the modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_every_test_lies_in_the_folder_of_the_package_that_it_tests():
    packages = {path.parent.name for path in (ROOT / "sdjax").glob("*/__init__.py")}
    modules = {f"test_{path.stem}" for path in (ROOT / "sdjax").glob("*.py")}
    for path in TESTS:
        folder, *deeper = path.relative_to(ROOT / "tests").parts[:-1] or [""]
        assert not deeper, named(path)
        if folder:
            assert folder in packages | {"e2e"}, named(path)
        else:
            assert path.stem in modules | WHOLE, named(path)


def test_two_tests_have_different_names():
    assert len({path.name for path in TESTS}) == len(TESTS)


def test_no_test_imports_another():
    stems = {path.stem for path in TESTS}
    for path in HELPERS:
        assert not stems & imported(path), named(path)
        # The code that a test runs in another process may import that test's own file.
        started = set(re.findall(r"\bimport (test_\w+)", path.read_text()))
        assert started <= {path.stem}, named(path)


def test_tests_read_no_file_outside_the_repository():
    others = (path for path in HELPERS if path.stem != "test_layout")
    assert not [named(path) for path in others if OUTSIDE.search(path.read_text())]
