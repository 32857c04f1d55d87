"""The checksums of code: the files that they cover, their names, and what leaves them unchanged."""

import gc
import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
from paths import ROOT

import sdjax
from sdjax.config import load
from sdjax.io import code_files

CONFIG = """
from sdjax.config import *
from helpers_of_mine.grading import Mine
config = Train(out="o", task=Mine(held_out=0))
"""
TASK = "from sdjax.config import TaskConfig\nclass Mine(TaskConfig):\n    pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns a folder with a config and a package beside it, loaded."""
    (tmp_path / "helpers_of_mine").mkdir()
    (tmp_path / "helpers_of_mine" / "__init__.py").write_text("")
    (tmp_path / "helpers_of_mine" / "grading.py").write_text(TASK)
    (tmp_path / "mine.py").write_text(CONFIG)
    importlib.invalidate_caches()
    load.load(tmp_path / "mine.py")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("helpers_of_mine")]:
        del sys.modules[name]


def test_the_config_and_what_it_imports_are_covered_under_the_names_of_their_modules(folder):
    found = code_files.checksums()
    names = {"mine.py", "helpers_of_mine/__init__.py", "helpers_of_mine/grading.py"}
    assert names < found.keys()
    assert found["helpers_of_mine/grading.py"] == code_files._checksum(
        folder / "helpers_of_mine" / "grading.py"
    )


def test_all_of_sdjax_is_covered_and_neither_python_nor_installed_packages(folder):
    found = code_files.checksums()
    ours = {f"sdjax/{p.relative_to(code_files.PACKAGE)}" for p in code_files.PACKAGE.rglob("*.py")}
    assert ours <= found.keys() and "sdjax/io/code_files.py" in ours
    others = {name for name in found.keys() - ours if name.startswith("sdjax/")}
    assert not others
    assert not {"pytest/__init__.py", "json/__init__.py", "numpy/__init__.py"} & found.keys()


def test_an_edit_changes_the_checksum_of_the_next_start_but_not_of_this_one(folder):
    before = code_files.checksums()
    (folder / "helpers_of_mine" / "grading.py").write_text(TASK + "# edited\n")
    assert code_files.checksums() == before
    for name in ("helpers_of_mine.grading", "helpers_of_mine"):
        del sys.modules[name]
    load.load(folder / "mine.py")
    after = code_files.checksums()
    assert {n for n in after if after[n] != before.get(n)} == {"helpers_of_mine/grading.py"}


def test_another_folder_gives_the_same_names_and_checksums(tmp_path):
    script = (
        "import json, pathlib; from sdjax.config import load; from sdjax.io import code_files;"
        "load.load(pathlib.Path('mine.py')); print(json.dumps(code_files.checksums()))"
    )
    said = []
    for name in ("one", "other"):
        place = tmp_path / name
        place.mkdir()
        (place / "helpers.py").write_text(TASK)
        (place / "mine.py").write_text(CONFIG.replace("helpers_of_mine.grading", "helpers"))
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=place, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and '"helpers.py"' in said[0] and str(tmp_path) not in said[0]


def test_an_import_by_another_thread_meanwhile_is_no_error(monkeypatch):
    # The garbage collector runs in the middle of anything, as another thread does, but on time.
    imported: list[str] = []

    def imports(phase, _):
        if phase == "start" and len(imported) < 1000:
            imported.append(f"imported_meanwhile_{len(imported)}")
            monkeypatch.setitem(sys.modules, imported[-1], ModuleType(imported[-1]))

    before, frequent = code_files.checksums(), gc.get_threshold()
    gc.callbacks.append(imports)
    gc.set_threshold(1, 1, 1)
    try:
        assert code_files.checksums() == before
    finally:
        gc.set_threshold(*frequent)
        gc.callbacks.remove(imports)
    assert imported


def test_a_long_list_of_files_is_cut():
    names = [f"{letter}.py" for letter in "gfedcba"]
    assert code_files.listed(names) == "a.py, b.py, c.py, d.py, e.py and 2 more"
    assert code_files.listed(names[:1]) == "g.py"
    assert sdjax.__file__ == str(code_files.PACKAGE / "__init__.py")
