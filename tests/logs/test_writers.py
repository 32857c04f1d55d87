import json
import os
import pty
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
from paths import ROOT

from sdjax import config
from sdjax.io import files
from sdjax.logs import terminal, writers

QUIET = config.Log(to=())


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_timers_add_up_within_a_step_and_start_again():
    timers = writers.Timers()
    for _ in range(2):
        with timers("rollout"):
            time.sleep(0.02)
    with pytest.raises(KeyError), timers("update"):
        raise KeyError
    taken = timers.take()
    assert list(taken) == ["time/rollout_s", "time/update_s"]
    assert 0.04 <= taken["time/rollout_s"] < 1
    assert timers.take() == {}


def test_every_step_is_a_line_at_once(tmp_path):
    with writers.Writer(tmp_path, QUIET, steps=2, primary=True) as writer:
        writer.write(1, {"rollout/reward": np.float32(0.5), "loss/kl": np.array(2)})
        assert read(tmp_path / "metrics.jsonl") == [
            {"step": 1, "rollout/reward": 0.5, "loss/kl": 2.0}
        ]


def test_numbers_that_json_lacks_are_strings_that_float_reads_back(tmp_path):
    given = {"a": float("nan"), "b": float("inf"), "c": np.float32("-inf"), "d": 1e-30}
    with writers.Writer(tmp_path, QUIET, steps=1, primary=True) as writer:
        writer.write(1, given)
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1e-30}
    for name, value in given.items():
        np.testing.assert_equal(float(row[name]), float(value))


def test_rollout_rows_hold_any_text_and_arrays(tmp_path):
    writer = writers.RolloutWriter(tmp_path, primary=True)
    text = "a\nb\u2028c \ud800 </script> 🙂 \x00"
    logprobs = np.array([-0.5, -np.inf], np.float32)
    writer.write(3, [{"completion": text, "tokens": np.array([1, 2], np.int32)}])
    writer.write(3, [{"sampler_logprobs": logprobs, "reward": np.float64(1)}])
    writer.close()
    lines = (tmp_path / "rollouts.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 3, "completion": text, "tokens": [1, 2]}
    assert json.loads(lines[1])["sampler_logprobs"] == [-0.5, "-Infinity"]
    assert len(lines) == 2


def test_a_row_that_is_not_json_names_the_type():
    with pytest.raises(TypeError, match="set"):
        files.to_json({"a": {1}})


def test_a_resumed_run_drops_the_lines_of_later_steps_and_a_torn_last_one(tmp_path):
    for resume, steps in ((None, range(1, 8)), (4, (5, 6)), (6, (7,))):
        with writers.Writer(tmp_path, QUIET, steps=9, primary=True, after=resume) as writer:
            rollouts = writers.RolloutWriter(tmp_path, primary=True, after=resume)
            for step in steps:
                writer.write(step, {"from": resume or 0})
                rollouts.write(step, [{"i": 0}, {"i": 1}])
            rollouts.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "from"')
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1]
    rows = [json.loads(line) for line in lines]
    assert [(r["step"], r["from"]) for r in rows] == [
        (1, 0), (2, 0), (3, 0), (4, 0), (5, 4), (6, 4), (7, 6),
    ]  # fmt: skip
    assert [r["step"] for r in read(tmp_path / "rollouts.jsonl")] == sorted([*range(1, 8)] * 2)


@pytest.mark.parametrize("after", [None, -1])
def test_a_run_that_starts_at_the_beginning_starts_its_files_anew(tmp_path, after):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with writers.Writer(tmp_path, QUIET, steps=1, primary=True, after=after) as writer:
        writer.write(0, {})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0}]


def test_other_processes_write_nothing(tmp_path, capsys):
    with writers.Writer(tmp_path, config.Log(), steps=1, primary=False) as writer:
        writer.write(1, {"rollout/reward": 1.0})
        writer.say("hello")
    rollouts = writers.RolloutWriter(tmp_path, primary=False)
    rollouts.write(1, iter(lambda: pytest.fail("rows were made for nothing"), None))
    rollouts.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_tensorboard_gets_the_same_numbers_by_the_same_names(tmp_path):
    first = {"rollout/reward": 0.25, "eval/avg@4": 0.5, "ood/other_task/pass@1": 0.75}
    second = {"rollout/reward": 0.5, "reprompt/a b": 1.0}
    with writers.Writer(tmp_path, config.Log(), steps=2, primary=True) as writer:
        writer.write(1, first)
        writer.write(2, second)
    (file,) = (tmp_path / "tensorboard").iterdir()
    written_events = runs.events(file)
    scalars = [(e.step, v.tag, v.simple_value) for e in written_events for v in e.summary.value]
    written = [(i, *pair) for i, row in enumerate((first, second), 1) for pair in row.items()]
    assert scalars == written


def test_without_a_terminal_every_step_is_a_plain_line(tmp_path, capsys):
    with writers.Writer(tmp_path, QUIET, steps=3, primary=True) as writer:
        writer.write(0, {"eval/avg@4": 0.25, "eval/length": 30.0})
        writer.write(1, {"rollout/reward": 0.5, "rollout/length": 31.25, "other": 1})
        time.sleep(0.01)
        writer.write(2, {"rollout/reward": 0.75, "rollout/tokens_per_s": 1234.5})
        writer.say("[done]")
    assert capsys.readouterr().out.splitlines() == [
        "step 0  eval/avg@4 0.25  eval/length 30",
        "step 1/3  reward 0.5  length 31.25  left -",
        "step 2/3  reward 0.75  tokens/s 1234  left 0:00:00",
        "[done]",
    ]


def test_on_a_terminal_a_bar_shows_step_reward_length_speed_and_time_left(tmp_path):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from sdjax import config; from sdjax.logs import writers\n"
        "out = Path(sys.argv[1]); log = config.Log(to=())\n"
        "with writers.Writer(out, log, steps=8, primary=True, after=2) as writer:\n"
        "    for step in (3, 4, 5):\n"
        "        time.sleep(0.1)\n"
        "        writer.write(step, {'rollout/reward': 0.5, 'rollout/length': 7, "
        "'rollout/tokens_per_s': 99, 'eval/avg@4': step})\n"
        "    writer.say('[note]')\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "5/8" in text and "reward 0.5  length 7  tokens/s 99" in text
    assert "step 5  eval/avg@4 5" in text and "[note]" in text
    assert "0:00:0" in text.split("5/8")[-1]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "config.json"
    path.parent.mkdir()
    files.write_text(path, "one")
    files.write_text(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_the_closing_table_shows_before_after_and_change():
    table = terminal.closing_table(
        [("accuracy [avg@4]", 0.25, 0.5), ("mean length", 40.0, 30.5), ("new", None, 1.0)]
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["", "before", "after", "change"]
    assert cells[2:] == [
        ["accuracy [avg@4]", "0.250", "0.500", "+0.250"],
        ["mean length", "40.000", "30.500", "-9.500"],
        ["new", "-", "1.000", "-"],
    ]
