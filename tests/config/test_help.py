"""The help of a config lists what its fields may name."""

import re
import subprocess
import sys

import pytest

from sdjax import config
from sdjax.config.load import override
from sdjax.objectives.divergences import DIVERGENCES, full
from sdjax.objectives.token_weights import TOKEN_WEIGHTS, uniform


def test_help_lists_every_divergence_and_every_token_weighting(monkeypatch, capsys):
    monkeypatch.setitem(DIVERGENCES, "new_divergence", full)
    monkeypatch.setitem(TOKEN_WEIGHTS, "new_weighting", uniform)
    job = config.Train(out="runs/x", task=config.TaskConfig())
    assert override(job, ["--help"], prog="sdjax") is None
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert f"One of {', '.join(DIVERGENCES)}: DIVERGENCES of sdjax/objectives" in shown
    assert f"One of {', '.join(TOKEN_WEIGHTS)}: TOKEN_WEIGHTS of sdjax/objectives" in shown


def test_a_name_is_set_like_any_other_value_after_help(capsys):
    job = config.Train(out="runs/x", task=config.TaskConfig())
    override(job, ["--help"], prog="sdjax")
    changed = override(job, ["--loss.divergence", "top_k"], prog="sdjax")
    assert changed.loss == config.Loss(divergence="top_k")


@pytest.mark.heavy
def test_the_tables_of_help_are_read_without_importing_their_functions():
    names = {"divergences:DIVERGENCES": DIVERGENCES, "token_weights:TOKEN_WEIGHTS": TOKEN_WEIGHTS}
    script = (
        "import sys\n"
        "from sdjax.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'numpy', 'jax', 'tyro', 'rich', 'transformers'} & set(sys.modules)\n"
        "assert main(['--config', 'package:tiny/sdpo', '--help']) == 0\n"
        "assert not {'jax', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"[\s│]+", " ", done.stdout)
    for place, table in names.items():
        assert f"One of {', '.join(table)}: {place.partition(':')[2]} of sdjax/" in shown
