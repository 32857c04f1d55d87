"""What is not installed is named with the command that installs it, before anything is loaded."""

import sys
from pathlib import Path

import pytest

from sdjax import config, tasks
from sdjax.errors import UserError, require_package


def without(monkeypatch, package):
    """Makes a package look as if it were not installed."""
    monkeypatch.setitem(sys.modules, package, None)


def test_an_installed_package_passes():
    require_package("numpy", "math", "this test")


def arithmetic(_):
    from sdjax.tasks.arithmetic import Arithmetic

    tasks.load(Arithmetic(size=3, held_out=1), config.Data())


def mathematics(folder):
    from sdjax.tasks.math import Math

    file = folder / "rows.jsonl"
    file.write_text(
        '{"question": "1 + 1?", "answer": "2"}\n{"question": "1 + 2?", "answer": "3"}\n'
    )
    tasks.load(Math(train=str(file), test="", held_out=1), config.Data())


def quantised(folder):
    from sdjax.models.files import gguf

    gguf.open_file(folder / "model.gguf")


def pictures(folder):
    from sdjax.jobs import report_job

    report_job.run(config.Report(runs=(str(folder),), plots=str(folder / "plots")))


@pytest.mark.parametrize(
    ("use", "package", "extra"),
    [
        (arithmetic, "reasoning_gym", "puzzles"),
        (mathematics, "math_verify", "math"),
        (quantised, "gguf", "gguf"),
        (pictures, "matplotlib", "plots"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(use, package, extra, tmp_path, monkeypatch):
    without(monkeypatch, package)
    monkeypatch.setattr("sdjax.tasks.arithmetic._loaded", {})
    with pytest.raises(UserError) as caught:
        use(Path(tmp_path))
    assert str(caught.value).endswith(
        f"needs {package}, which is not installed: pip install 'sdjax[{extra}]'"
    )
