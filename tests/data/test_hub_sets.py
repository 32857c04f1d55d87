"""Which files of a hub's data set belong to a split of a configuration."""

import pytest

from sdjax.data import hub_sets
from sdjax.data.sources import SUFFIXES
from sdjax.errors import UserError

GSM8K = [
    *("README.md", "main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"),
    *("socratic/train-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet"),
]
FORMS = ["train.parquet", "train.jsonl", "data/dev.json", "dataset_infos.json"]
FOLDERS = ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"]


def choose(paths, configuration, split):
    return hub_sets.choose("me/set", paths, SUFFIXES, configuration, split)


@pytest.mark.parametrize(
    ("paths", "configuration", "split", "chosen"),
    [
        (GSM8K, "main", "test", ["main/test-00000-of-00001.parquet"]),
        (FORMS, "", "train", ["train.parquet"]),
        (FORMS, "", "validation", ["data/dev.json"]),
        (FOLDERS, "", "train", ["train/a.jsonl", "train/b.jsonl"]),
        (["data/dapo-math-17k.parquet"], "", "train", ["data/dapo-math-17k.parquet"]),
        (["a/x.jsonl", "b/x.jsonl"], "b", "train", ["b/x.jsonl"]),
    ],
)
def test_names_tell_the_configuration_and_the_split(paths, configuration, split, chosen):
    assert choose(paths, configuration, split) == chosen


@pytest.mark.parametrize(
    ("paths", "configuration", "split", "says"),
    [
        (GSM8K, "", "train", "has main, socratic: name one of them, such as me/set:main/train"),
        (GSM8K, "mian", "train", "has no mian, but main, socratic"),
        (GSM8K, "main", "validation", "has no split validation, but test, train"),
        (["data/x.jsonl"], "", "test", "has no split test, but train"),
        (["README.md", "x.arrow"], "", "train", "has no .parquet"),
    ],
)
def test_what_is_not_there_or_not_unique_is_said(paths, configuration, split, says):
    with pytest.raises(UserError, match="me/set") as error:
        choose(paths, configuration, split)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("openai/gsm8k", True),
        ("openai/gsm8k@main:main/test", True),
        ("openai/gsm8k:test", True),
        ("me/set-v1.5:train", True),
        ("data/rows.jsonl", False),
        ("rows", False),
        ("a/b/c", False),
        ("hf://datasets/openai/gsm8k", False),
        ("https://a.b/c", False),
    ],
)
def test_an_id_is_told_from_a_path(source, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_sets.is_id(source, SUFFIXES) == known


def test_a_path_that_exists_is_no_id(tmp_path, monkeypatch):
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not hub_sets.is_id("openai/gsm8k", SUFFIXES)


def test_a_split_of_the_user_stays():
    assert hub_sets.with_split("me/set", "test") == "me/set:test"
    assert hub_sets.with_split("me/set:validation", "test") == "me/set:validation"
