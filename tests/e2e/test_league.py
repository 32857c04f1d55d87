"""The remedy league: every arm is a config, and its tables are what the runs measured."""

import functools
import json
import os
import runpy
import shlex
import subprocess
import sys

import league_runs
import numpy as np
import pytest
from paths import ROOT

from sdjax import config
from sdjax.config.load import load, override
from sdjax.objectives import credits, learn_from
from sdjax.teacher import contexts

SCRIPT = ROOT / "configs" / "tiny" / "league.sh"

SETS = ("in domain", "large", "divide", "four")
FLAGS = (
    "--steps 2 --model.compute_dtype float32 --rollout.prompts_per_step 4 --rollout.group_size 4 "
    "--rollout.max_completion_tokens 160 --optim.microbatch 8 --eval.every 1 --eval.examples 2 "
    "--eval.k 2 --eval.batch 2 --eval.max_completion_tokens 160 --checkpoint.export False"
)


@pytest.fixture(scope="module")
def writer():
    return runpy.run_path(str(ROOT / "dev" / "league_table.py"))


@pytest.fixture
def runs(tmp_path):
    """Returns a directory with three runs; one arm has two seeds and longer completions."""
    out = tmp_path / "league"
    league_runs.write(out / "grpo_0", seed=0, length=30, skill=0.9)
    for seed in (0, 1):
        league_runs.write(out / f"unrelated_{seed}", seed=seed, length=50, skill=0.7)
    return out


def commands(*arms, seeds="0"):
    """Returns the arguments of every training that the script would start."""
    shown = subprocess.run(
        ["bash", SCRIPT, "runs/league", seeds, "1", *arms],
        env=os.environ | {"DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [shlex.split(line)[4:] for line in shown.stdout.splitlines()]


of_file = functools.cache(load)


def loaded(arguments):
    file, *options = arguments
    return override(of_file(ROOT / file), options, prog="test")


EVERY = ("remedies", "explain", "smollm2")


@pytest.mark.parametrize(
    "arms",
    [
        ("before_drift", "contrast_means", "unrelated_failed", "smollm2_largest"),
        pytest.param(EVERY, marks=pytest.mark.heavy),
    ],
)
def test_an_arm_is_a_training_that_the_program_accepts(arms):
    found = 0
    for arguments in commands(*arms):
        cfg = loaded(arguments)
        if isinstance(cfg, config.Train):
            contexts.used(cfg)
            learn_from.check(cfg.loss)
            credits.get(cfg.policy.credit)
            assert cfg.seed == cfg.data.seed == 0 and cfg.out.startswith("runs/league/")
            longer = cfg.out.endswith("_longer_0")
            assert cfg.steps == (240 if longer else 100 if "smollm2" in cfg.out else 60)
            found += 1
    assert found == (41 if arms == EVERY else 4)


def test_sets_of_arms_that_overlap_train_an_arm_once_for_each_seed():
    outs = [arguments[arguments.index("--out") + 1] for arguments in commands(*EVERY, seeds="0 1")]
    assert len(outs) == len(set(outs)) == 4 + 2 * 41


def test_the_base_models_of_an_arm_come_first_and_differ_in_their_traces():
    traces, base, one = map(loaded, commands("gives_up_grpo"))
    assert isinstance(traces, config.Traces) and traces.guided_gives_up
    assert isinstance(base, config.SFT) and base.source == f"{traces.out}/traces.jsonl"
    assert base.model.path == f"{traces.out}/model" and one.model.path == f"{base.out}/model"
    told, shown = loaded(commands("taught_keep_trying")[0]), load(ROOT / "configs/tiny/contexts.py")
    assert told.instructed == 0.2 and told.instruction == shown.contexts["keep_trying"].instruction


def test_an_arm_that_is_not_there_brings_those_that_are():
    done = subprocess.run(
        ["bash", SCRIPT, "x", "0", "1", "typo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no arm typo: one of answer answer_masked" in done.stderr


def rows(text):
    """Returns the tables of league.md: per table a dict of cells by column, by arm."""
    out, head = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| arm "):
            head = cells
            out.append({})
        elif line.startswith("| ") and not line.startswith("| ---"):
            out[-1][cells[0]] = dict(zip(head, cells, strict=True))
    return out


def answers(run, step, name):
    """Returns float[questions, answers] of a set, by the order of the questions."""
    lines = (run / "answers" / f"{step:06d}.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    sets = list(dict.fromkeys(row["set"] for row in every))
    wanted = sets[0] if name == "in domain" else name
    right = [float(row["correct"]) for row in every if row["set"] == wanted]
    return np.array(right).reshape(2, 2)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_tables_hold_what_the_runs_measured(writer, runs, capsys):
    assert writer["main"]([str(runs)]) == 0
    text = (runs / "league.md").read_text()
    assert capsys.readouterr().out == text
    (end, equal) = rows(text)
    assert list(end) == list(equal) == ["before training", "grpo", "unrelated"]
    assert end["unrelated"]["seeds"] == "2" and end["grpo"]["seeds"] == "1"
    both = [metrics(runs / f"unrelated_{seed}")[-1] for seed in (0, 1)]
    for name in SETS:
        pooled = np.mean([answers(runs / f"unrelated_{seed}", 3, name) for seed in (0, 1)])
        assert end["unrelated"][name].startswith(f"{pooled:.2f} (")
        where = "eval" if name == "in domain" else f"ood/{name}"
        assert pooled == pytest.approx(np.mean([m[f"{where}/avg@2"] for m in both]))
    for column, metric in (
        ("tokens", "eval/length"),
        ("cut off", "eval/truncated"),
        ("doubt", "eval/epistemic_per_1000_tokens"),
        ("fork rate", "eval/fork_rate"),
    ):
        values = np.array([m[metric] for m in both])
        short = writer["_short"]
        wanted = f"{short(values.mean())} ({short(values.min())}-{short(values.max())})"
        assert end["unrelated"][column] == wanted
    assert end["before training"]["in domain"].startswith(
        f"{answers(runs / 'grpo_0', 0, 'in domain').mean():.2f} ("
    )


def generated(run, step):
    """Returns how many tokens the rollouts of the first steps have, 4 x 4 completions each."""
    return sum(16 * row["rollout/length"] for row in metrics(run) if 0 < row["step"] <= step)


def test_equal_tokens_take_the_last_evaluation_within_the_least_total(writer, runs):
    writer["write"](runs)
    (end, equal) = rows((runs / "league.md").read_text())
    every = ("grpo_0", "unrelated_0", "unrelated_1")
    least = min(generated(runs / run, 3) for run in every)
    for arm in ("grpo", "unrelated"):
        own = [run for run in every if run.startswith(arm)]
        within = [s for s in range(4) if all(generated(runs / r, s) <= least + 1e-6 for r in own)]
        assert equal[arm]["step"] == str(within[-1]) and end[arm]["step"] == "3"
    figures = json.loads((runs / "league.json").read_text())[0]["all steps"]
    for row in figures:
        for of_seed in row["seeds"]:
            run = runs / f"{row['arm']}_{of_seed['seed']}"
            assert of_seed["generated"] == pytest.approx(generated(run, 3) / 1000, rel=1e-6)
            spent = [v for m in metrics(run)[1:] for k, v in m.items() if k.startswith("time/")]
            assert of_seed["seconds"] == pytest.approx(sum(spent), rel=1e-6)


def test_the_interval_narrows_with_the_answers_of_more_seeds(writer, runs):
    members = writer["timed_runs"](runs)
    one, both = (
        writer["result"]("x", [m for m in members if m.arm == "unrelated"][:n], 0) for n in (1, 2)
    )
    for name in SETS:
        width = [r.accuracies[name].high - r.accuracies[name].low for r in (one, both)]
        # Before training both seeds gave the same answers, so that these tell nothing new.
        assert one.accuracies[name].value == both.accuracies[name].value
        assert 0 < width[1] <= width[0] + 1e-9


def test_a_page_gets_the_tables_between_its_two_comments(writer, runs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{writer['FIRST']}\nold\n{writer['LAST']}\n\nAfter.\n")
    for _ in range(2):  # a second time it replaces its own text
        assert writer["main"]([str(runs), "--page", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("# Title\n\n") and text.endswith("\n\nAfter.\n")
        assert "old" not in text and text.count((runs / "league.md").read_text()) == 1
    plots = sorted(file.name for file in (runs / "plots").iterdir())
    assert plots == ["package_sdjax_tiny_times_accuracy.png", "package_sdjax_tiny_times_doubt.png"]


def test_what_the_tables_cannot_show_is_one_line(writer, runs, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Without comments\n")
    assert writer["main"]([str(runs), "--page", str(page)]) == 2
    assert "page.md: needs the line '<!-- league" in capsys.readouterr().err
    assert not (runs / "league.md").exists()
    record = runs / "grpo_0" / "run.json"
    record.write_text(record.read_text().replace('"device": "', '"device": "other '))
    assert writer["main"]([str(runs)]) == 2
    assert "give each a folder of its own" in capsys.readouterr().err
    (runs / "grpo_0" / "evaluations.json").unlink()
    assert writer["main"]([str(runs)]) == 0
    told = capsys.readouterr()
    assert "grpo_0: not finished; left out" in told.err and "| grpo |" not in told.out
    (runs / "unrelated_1" / "answers" / "000003.jsonl").unlink()
    assert writer["main"]([str(runs)]) == 2
    assert "000003.jsonl: is missing" in capsys.readouterr().err
    assert writer["main"]([str(tmp_path / "nowhere")]) == 2
    assert "holds no finished training" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_trains_two_arms_and_writes_their_table(tmp_path):
    out = tmp_path / "league"
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPT, out, "0", "2", "before_drift", "unrelated_failed"],
        env=os.environ | {"FLAGS": FLAGS, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (end, _) = rows((out / "league.md").read_text())
    assert list(end) == ["before training", "before_drift", "unrelated_failed"]
    assert all(row["fork rate"] for row in end.values())
