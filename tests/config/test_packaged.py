"""The configs of the package are found by name, listed with a sentence, and suggested."""

import re
from pathlib import Path

import pytest
from paths import ROOT

from sdjax.config import packaged
from sdjax.config.load import load
from sdjax.errors import UserError
from sdjax.main import main

BINDING = sorted(
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if path.name != "mine_reward.py"  # a reward, which mine.py imports
)


def test_every_config_of_the_repository_has_a_name():
    assert sorted(packaged.names()) == BINDING


def test_every_config_is_listed_in_one_line_that_ends_a_sentence(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == [f"package:{name}" for name in BINDING]
    assert [line for line in lines if not re.fullmatch(r"package:\S+  +[A-Z].{20,}\.", line)] == []
    assert max(map(len, lines)) < 160


def test_the_list_is_limited_to_names_with_a_part(capsys):
    assert main(["configs", "SmolLM2"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "package:smollm2/cpu" in names and all("smollm2" in name for name in names)


def test_a_name_stands_for_its_file_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("package:quickstart") == load(ROOT / "configs" / "quickstart.py")
    # It starts from its neighbour in the package's folder.
    assert load(Path("package:tiny/grpo")).out == load(ROOT / "configs" / "tiny" / "grpo.py").out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "package:quikstart",
            "no such config in the package; perhaps you meant package:quickstart",
        ),
        ("package:sdpo_qwen3_8", "perhaps you meant package:math/sdpo_qwen3_8b"),
        ("package:", "`sdjax configs` lists all"),
        ("configs/quickstart.py", "no such config file; perhaps you meant package:quickstart"),
        ("quickstart", "no such config file; perhaps you meant package:quickstart"),
        ("configs/tiny/sdpo.py", "perhaps you meant package:tiny/sdpo"),
        ("mien.py", "no such config file; perhaps you meant mine.py"),
    ],
)
def test_a_config_that_is_not_there_brings_the_nearest(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    with pytest.raises(UserError) as caught:
        load(given)
    assert said in str(caught.value)


def test_a_part_that_no_name_has_is_one_line():
    with pytest.raises(UserError, match="'quikstart' in its name; perhaps you meant package:quick"):
        packaged.listing("quikstart")
