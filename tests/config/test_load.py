"""Arguments override the fields of a config file, booleans in each of their forms."""

import pytest
from paths import ROOT

from sdjax.config import SFT
from sdjax.config.load import BOOLEANS, boolean_fields, load, override, with_boolean_values
from sdjax.errors import UserError

CONFIG = load(ROOT / "configs/tiny/sdpo.py")


def overridden(*args):
    return override(CONFIG, args, prog="prog")


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--log.progress", "True"], True),
        (["--log.progress", "False"], False),
        (["--log.progress=False"], False),
        (["--log.progress"], True),
        (["--log.no_progress"], False),
        (["--log.no-progress"], False),
        (["--log.no_progress", "--log.progress", "--steps", "3"], True),
        (["--log.progress", "--log.no_progress"], False),
        (["--steps", "3", "--log.no_progress"], False),
    ],
)
def test_a_boolean_of_a_section_has_every_form(args, value):
    assert overridden(*args).log.progress is value


@pytest.mark.parametrize(
    ("args", "value"),
    [(["--resume"], True), (["--resume", "True"], True), (["--no_resume"], False)],
)
def test_a_boolean_without_a_section_has_every_form(args, value):
    assert overridden(*args).resume is value


def test_a_flag_before_another_argument_takes_no_value_of_it():
    got = overridden("--resume", "--steps", "7")
    assert (got.resume, got.steps) == (True, 7)


def test_a_boolean_that_may_be_none_takes_its_three_values():
    values = {"None": None, "True": True, "False": False}
    for text, value in values.items():
        assert overridden("--rollout.enable_thinking", text).rollout.enable_thinking is value


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--log.progress", "no"], ["--log.progress", "'no'", "True", "False"]),
        (["--log.progres", "False"], ["--log.progres", "perhaps you meant --log.progress"]),
        (["--log.no_progres"], ["--log.no_progres", "perhaps you meant --log.progress"]),
        (["--log.no_progress", "False"], ["Unrecognized options: False"]),
        (["--steps", "--resume"], ["--steps"]),
    ],
)
def test_a_wrong_boolean_is_named_with_its_remedy(args, words):
    with pytest.raises(UserError) as caught:
        overridden(*args)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_help_says_how_a_boolean_is_set(capsys):
    assert overridden("--help") is None
    said = " ".join(capsys.readouterr().out.split())
    assert BOOLEANS in said
    assert "--log.progress {True,False}" in said


def test_boolean_fields_are_found_in_sections_and_in_named_tasks():
    found = set(boolean_fields(CONFIG))
    assert {"resume", "log.progress", "reprompt.feedback", "rollout.server.off_policy"} <= found
    assert not found & {"rollout.enable_thinking", "steps", "log"}
    assert "resume" in set(boolean_fields(SFT(out="out", source="source.jsonl")))


def test_arguments_without_booleans_stay_as_they_are():
    args = ["--steps", "3", "--eval.k=2", "stray", "--", "-1"]
    assert with_boolean_values(args, {"resume"}) == args
