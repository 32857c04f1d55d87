"""The report reads run directories, groups runs into families, and chooses rollouts."""

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs
from paths import ROOT

from sdjax.analysis.report import blocks, facts, read, rollouts, run_families, words
from sdjax.config import Report
from sdjax.errors import UserError
from sdjax.jobs import report_job
from sdjax.main import main


def block(file: Path, name: str):
    """Returns a block of data of a report, in the form that the page reads."""
    found = re.search(rf'id="block-{name}">([^<]*)</script>', file.read_text(encoding="utf-8"))
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def made(folder: Path, *runs: Path, **fields) -> Path:
    out = folder / "report.html"
    report_job.run(Report(runs=tuple(map(str, runs)), out=str(out), **fields))
    return out


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        report_runs.write(folder / f"sdpo.{seed}", seed=seed, parts=1 + seed) for seed in (0, 1)
    ]


def test_runs_that_differ_only_in_seed_are_one_family(seeds, tmp_path):
    other = report_runs.write(tmp_path / "grpo", method="grpo")
    runs = read.runs([*map(str, seeds), str(other)])
    found = run_families.of(runs)
    assert [(family.name, len(family.runs)) for family in found] == [("sdpo", 2), ("grpo", 1)]
    assert run_families.differences(runs) == {
        "seed": ["0", "1", "0"],
        "data.seed": ["0", "1", "0"],
        "loss.distillation": ["1.0", "1.0", "0.0"],
    }


def test_a_run_tells_its_model_task_rate_steps_duration_program_and_devices(seeds):
    (run, *_) = read.runs([str(seeds[0])])
    known = {"model": {"path": "m\u00e9/m"}, "task": {"class": "Math"}, "optim": {"lr": 1e-4}}
    start = {"sdjax": "1.2", "commit": "a" * 40, "dirty": True, "devices": 8, "device": "H200"}
    changes = [{"after": 4, "name": "optim.lr", "old": 1e-3, "new": 1e-4}]
    record = {"starts": [{}, start], "changes": changes}
    assert facts.of(replace(run, config=known | {"steps": 1200}, record=record)) == {
        "model": "m\u00e9/m",
        "task": "Math",
        "lr": "0.001; from step 5 on 0.0001",
        "steps": "10 of 1,200",
        "duration": "40 s",
        "program": f"sdjax 1.2, {'a' * 12} (changed)",
        "devices": "8 x H200",
    }
    other = replace(run, config=known, record={})
    assert facts.of(other)["steps"] == "10"
    timeless = replace(other, metrics=[{"step": 0}, {"step": 1, "m": 1.0}])
    assert {facts.of(timeless)[n] for n in ("program", "devices", "duration")} == {""}
    changed = replace(run, name="changed", config=known, record=record)
    assert run_families.differences([other, changed]) == {
        "optim.lr": ["0.0001", "0.001; from step 5 on 0.0001"]
    }
    assert len(run_families.of([other, changed])) == 2


def test_a_field_that_is_off_keeps_no_run_from_those_that_lack_it(seeds):
    first, second = read.runs([*map(str, seeds)])
    newer = replace(second, config={**second.config, "new": {"on": False, "share": 0}})
    assert len(run_families.of([first, newer])) == 1
    newer = replace(second, config={**second.config, "new": {"on": True, "share": 0}})
    assert len(run_families.of([first, newer])) == 2


def test_a_familys_curve_is_the_mean_of_its_runs_with_their_range_and_students_interval():
    values = {"a": [1.0, 2.0, "NaN"], "b": [3.0, 2.0, 7.0], "c": [8.0, 5.0]}
    runs = tuple(
        read.RunRecord(
            name=name,
            folder=Path(name),
            config={},
            metrics=[{"step": s, "m": float(v)} for s, v in enumerate(of)],
            evaluations=[],
            rollouts=(),
        )
        for name, of in values.items()
    )
    found = run_families.series(run_families.RunFamily("f", runs), "m")
    np.testing.assert_array_equal(found.steps, [0, 1, 2])
    np.testing.assert_allclose(found.mean, [4, 3, 7])
    np.testing.assert_allclose(found.low, [1, 2, 7])
    np.testing.assert_allclose(found.high, [8, 5, 7])
    np.testing.assert_array_equal(found.number, [3, 3, 1])
    assert np.isnan([found.least, found.most, found.questions]).all()
    # t of 2 degrees of freedom is 4.302653 at 97.5 %; the deviations are sqrt(13) and sqrt(3).
    np.testing.assert_allclose(found.half[:2], 4.302653 * np.sqrt([13 / 3, 1]), rtol=1e-6)
    assert np.isnan(found.half[2])
    assert run_families.series(run_families.RunFamily("f", runs), "other") is None


def test_the_page_holds_what_the_files_say(seeds, tmp_path):
    out = made(tmp_path, *seeds)
    data = block(out, "report")
    assert data["families"] == ["sdpo"]
    lines = [json.loads(x) for x in (seeds[0] / "metrics.jsonl").read_text().splitlines()]
    series = data["series"]["rollout/reward"][0]
    assert data["grids"][series["grid"]] == list(range(1, 11))
    np.testing.assert_allclose(series["runs"][0], [x["rollout/reward"] for x in lines[1:]], 1e-5)
    index, detail = block(out, "index"), block(out, "detail-0")
    text, tops = block(out, "text-0"), block(out, "tops-0")
    rows = [json.loads(x) for x in (seeds[0] / "rollouts.jsonl").read_text().splitlines()]
    assert len(index["run"]) == 160 and index["run"].count(1) == 80
    for at in (0, 3, 50):
        row, shown = rows[at], detail["rows"][at]
        assert text[at] == "".join(row["pieces"])
        assert shown["cuts"] == [len(piece) for piece in row["pieces"]]
        assert detail["strings"][shown["prompt"]] == row["prompt"]
        assert detail["strings"][shown["reprompt"]] == row["reprompt"]
        np.testing.assert_allclose(
            np.array(shown["student"]) / 100, row["student_logprobs"], 0, 6e-3
        )
        push = np.subtract(row["teacher_logprobs"], row["student_logprobs"])
        np.testing.assert_allclose(np.array(shown["push"]) / 100, push, 0, 6e-3)
        assert index["push"][at] == pytest.approx(100 * push.mean(), abs=0.6)
        assert index["epistemic_push"][at] == pytest.approx(
            100 * push[row["epistemic"]].mean(), abs=0.6
        )
        assert (index["step"][at], index["id"][at]) == (row["step"], row["id"])
        assert index["correct"][at] == row["correct"] and index["sibling"][at] == at % 4
    assert tops["rows"][0] is None
    first = tops["rows"][3]["teacher"][0]
    assert tops["strings"][first[0]] == rows[3]["pieces"][0] and first[1] == -30


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    for name in ("rollouts-10.jsonl.gz", "rollouts-9.jsonl", "rollouts-2.jsonl.gz"):
        (tmp_path / name).touch()
    (tmp_path / "rollouts.txt").touch()
    found = [file.name for file in read.rollout_files(tmp_path)]
    assert found == ["rollouts-2.jsonl.gz", "rollouts-9.jsonl", "rollouts-10.jsonl.gz"]
    (tmp_path / "sub" / "rollouts").mkdir(parents=True)
    (tmp_path / "sub" / "rollouts" / "000001.jsonl.gz").touch()
    assert len(read.rollout_files(tmp_path / "sub")) == 1


def test_a_run_of_which_less_is_known_is_shown_with_what_there_is(tmp_path):
    rows = report_runs.small(np.random.default_rng(0), 2)
    kept = ("step", "id", "prompt", "completion", "tokens", "reward", "correct", "student_logprobs")
    old = [{k: row[k] for k in kept} | {"teacher_logprobs": None} for row in rows]
    run = report_runs.write(tmp_path / "old", rollouts=old)
    (run / "evaluations.json").unlink()
    out = made(tmp_path, run)
    detail, text = block(out, "detail-0")["rows"], block(out, "text-0")
    assert text == [row["completion"] for row in rows]
    assert (
        block(out, "index")["kept"] == [0] * 16
        and "push" not in detail[0]
        and "reprompt" not in detail[0]
    )
    # Without the texts of tokens, the page shows the words of the completion.
    assert len(detail[0]["epistemic"]) == len(rows[0]["epistemic"])
    for file in ("rollouts.jsonl", "metrics.jsonl"):
        (run / file).write_text("")
    made(tmp_path, run)
    assert block(out, "index") == {}


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("config.json", "{", "config.json:1: not JSON"),
        ("config.json", "[]", "config.json: not a config"),
        ("metrics.jsonl", '{"step": 1}\nno\n', "metrics.jsonl:2: not JSON"),
        ("metrics.jsonl", '{"step": 1, "m": "x"}\n', "metrics.jsonl:1: m is 'x': not a number"),
        ("metrics.jsonl", '{"m": 1}\n', "metrics.jsonl:1: step is None"),
        ("evaluations.json", '[{"step": 1}]', "evaluations.json: evaluation 1 is not one"),
        ("warnings.jsonl", '{"kind": "flat"}\n', "warnings.jsonl:1: step is None"),
        ("answers/0.jsonl", '{"set": "a", "id": 1}\n', "answers/0.jsonl:1: not an answer"),
        ("answers/x.jsonl", "", "answers/x.jsonl: its name is not the number of a step"),
        ("rollouts.jsonl", '{"step": 1, "completion": "a"}\n[]\n', "rollouts.jsonl:2: not a JSON"),
        ("rollouts.jsonl", "[" * 10_000 + "\n", "rollouts.jsonl:1: not JSON"),
        ("rollouts.jsonl", '{"step": 1}\n', "rollouts.jsonl:1: completion is 'None'"),
        ("rollouts.jsonl", '{"completion": "a"}\n', "rollouts.jsonl:1: step is None"),
        (
            "rollouts.jsonl",
            '{"step": 1, "completion": "a", "pieces": ["a"], "student_logprobs": [1, 2]}\n',
            "rollouts.jsonl:1: student_logprobs: 2 values for 1 tokens",
        ),
        (
            "rollouts.jsonl",
            '{"step": 1, "completion": "a", "pieces": ["a"], "epistemic": [1]}\n',
            "rollouts.jsonl:1: epistemic: not all are places",
        ),
        (
            "rollouts.jsonl",
            '{"step": 1, "completion": "a", "pieces": ["a"], "teacher_top": [[["a"]]]}\n',
            "rollouts.jsonl:1: teacher_top: not lists of",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_nothing_is_written(
    tmp_path, capsys, file, text, said
):
    run = report_runs.write(tmp_path / "run", steps=2)
    (run / "answers").mkdir()
    (run / file).write_text(text)
    out = tmp_path / "out.html"
    args = ["--config", str(ROOT / "configs/report.py"), "--runs", str(run), "--out", str(out)]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not out.exists()


def test_a_wrong_field_is_named(tmp_path, seeds, capsys):
    run = str(seeds[0])
    config = ["--config", str(ROOT / "configs/report.py")]
    for args, said in (
        (["--runs", str(tmp_path)], "no config.json there"),
        (["--runs", run, run], "is named 2 times"),
        (["--runs", run, "--out", "x.txt"], "must end in .html"),
        (["--runs", run, "--out", "no/such/x.html"], "cannot be written"),
        (["--runs", run, "--lexicon", "x.json"], "no such file"),
        (["--runs", run, "--out", str(tmp_path / "x.html"), "--max_mb", "0.5"], "at least 1"),
    ):
        assert main([*config, *args]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_file_that_ends_inside_a_line_is_read_up_to_it(tmp_path, caplog):
    run = report_runs.write(tmp_path / "run", steps=2)
    whole = (run / "rollouts.jsonl").read_bytes()
    (run / "rollouts.jsonl").write_bytes(whole[:-30])
    assert len(block(made(tmp_path, run), "index")["run"]) == 15
    assert "rollouts.jsonl:16: the file ends inside a line" in caplog.text
    (run / "rollouts.jsonl").unlink()
    (run / "rollouts.jsonl.gz").write_bytes(gzip.compress(whole)[:-300])
    assert 0 < len(block(made(tmp_path, run), "index")["run"]) < 16
    assert "inside what gzip wrote" in caplog.text


def test_too_many_rollouts_give_whole_groups_evenly_spaced(tmp_path):
    kept = rollouts.chosen([4] * 10, [True] * 40, 12)
    assert sum(kept) == 12
    starts = [i // 4 for i in range(0, 40, 4) if kept[i]]
    assert starts == [0, 4, 9] and all(kept[4 * g : 4 * g + 4] == [True] * 4 for g in starts)
    assert rollouts.chosen([4, 4], [True] * 8, 8) == [True] * 8
    assert rollouts.chosen([8], [True] * 8, 3) == [True] * 3 + [False] * 5
    assert rollouts.chosen([3, 5], [True] * 8, 0) == [False] * 8
    # Rollouts with their tokens come first.
    whole = [i % 4 == 1 for i in range(16)]
    assert rollouts.chosen([4] * 4, whole, 4) == whole
    filled = rollouts.chosen([4] * 4, whole, 7)
    assert sum(filled) == 7 and all(filled[i] for i in range(16) if whole[i])
    assert rollouts.shares([10, 100, 100], 90) == [10, 40, 40]
    run = report_runs.write(tmp_path / "run")
    out = made(tmp_path, run, max_rollouts=20)
    assert len(block(out, "index")["run"]) == 20
    assert (
        "20 of 80 rollouts are shown: those with their tokens first"
        in block(out, "report")["rollout_note"]
    )


@pytest.mark.heavy
def test_a_file_over_its_size_loses_alternatives_first_and_then_groups(tmp_path):
    rng = np.random.default_rng(0)
    rows = [report_runs.rollout(rng, s, 1, 60, tops=5) for s in range(1, 31) for _ in range(4)]
    run = report_runs.write(tmp_path / "run", rollouts=rows)
    found = read.runs([str(run)])
    surveys = [rollouts.survey(found[0], ["paper"])]
    whole = blocks.fit(found, surveys, "paper", 5000, 10**9)
    bare, tops = whole.size("text", "detail"), whole.size("tops")
    assert whole.rows == 120 and not whole.note and tops > bare
    some = blocks.fit(found, surveys, "paper", 5000, int(1.2 * bare + 0.3 * tops))
    assert some.rows == 120 and 0 < some.size("tops") < 0.5 * tops
    assert "1 in" in some.note and sum(some.index["tops"]) < 60
    few = blocks.fit(found, surveys, "paper", 5000, bare // 2)
    assert 0 < few.rows < 70 and few.size("text", "detail", "tops") <= bare // 2
    assert f"{few.rows} of 120" in few.note
    with pytest.raises(UserError, match="max_mb is too low"):
        blocks.fit(found, surveys, "paper", 5000, 1000)


def test_words_before_and_after_come_from_the_evaluations_and_from_the_steps(tmp_path):
    run = read.runs([str(report_runs.write(tmp_path / "run"))])[0]
    own = words.of_evaluations(run)[0]
    assert (own.set, own.lexicon) == ("in domain", "paper")
    assert own.before.words["wait"] == 40 and own.after.words["wait"] == 4
    assert own.before.tokens == 20_000 and own.before.per_1000_tokens == 2.5
    found = rollouts.survey(run, ["paper", "word"]).counts
    change = words.of_steps("run", found)[0]
    assert change.before.step == "1" and change.before.completions == 8
    lines = [json.loads(x) for x in (run.folder / "rollouts.jsonl").read_text().splitlines()]
    wait = sum(x["completion"].count("wait") for x in lines if x["step"] == 10)
    assert change.after.words["wait"] == wait
    gaps = [
        teacher - student
        for x in lines
        if x["step"] == 10
        for piece, student, teacher in zip(
            x["pieces"], x["student_logprobs"], x["teacher_logprobs"], strict=True
        )
        if piece == " wait"
    ]
    assert change.after.push["wait"] == (pytest.approx(sum(gaps)), wait)
    assert own.after.push == {}


def test_words_are_marked_by_the_lexicon_that_is_asked_for(tmp_path):
    rows = [report_runs.rollout(np.random.default_rng(1), 1, 1, 60)]
    run = report_runs.write(tmp_path / "run", rollouts=rows)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"lexicon": "word"}))
    own = made(tmp_path, run)
    assert block(own, "detail-0")["rows"][0]["epistemic"] == rows[0]["epistemic"]
    assert {c["lexicon"] for c in block(own, "report")["words"]} == {"word"}
    (tmp_path / "mine.json").write_text('{"sum": ["sum", "sums"]}')
    other = made(tmp_path, run, lexicon=str(tmp_path / "mine.json"))
    marked = block(other, "detail-0")["rows"][0]["epistemic"]
    assert marked == [i for i, piece in enumerate(rows[0]["pieces"]) if piece == " sum"] != []
    assert block(other, "report")["lexicon"] == ["sum"]


def test_an_unfinished_runs_words_are_counted_in_its_answers(tmp_path):
    folder = report_runs.write(tmp_path / "run")
    (folder / "evaluations.json").unlink()
    (folder / "answers").mkdir()
    for step, text in ((0, "wait, wait"), (4, "no"), (8, "wait")):
        row = {"set": "sums", "id": "1", "completion": text, "tokens": 10, "finish": "stop"}
        row |= {"thinking_tokens": 0, "answer_tokens": 10, "correct": True, "details": {}}
        (folder / "answers" / f"{step:06}.jsonl").write_text(json.dumps(row) + "\n")
    own = words.of_evaluations(read.runs([str(folder)])[0])[0]
    assert (own.before.step, own.after.step) == ("0", "8")
    assert (own.before.words["wait"], own.after.words["wait"]) == (2, 1)


def test_the_command_writes_a_report_and_prints_its_tables(seeds, tmp_path, capsys):
    out = tmp_path / "r.html"
    config = ["--config", str(ROOT / "configs/report.py")]
    assert main([*config, "--runs", str(seeds[0]), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "In-domain accuracy rose from 0.3" in said and "50 questions, 95 % interval" in said
    assert "First -> last value" in said and out.exists()


@pytest.mark.heavy  # a fresh environment has no cache of fonts
def test_every_chart_is_a_png_too(seeds, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    made(tmp_path, *seeds, plots=str(tmp_path / "plots"))
    files = sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert "held_out_accuracy_out_of_domain_largest_number.png" in files and len(files) == 9
    assert (tmp_path / "plots" / files[0]).read_bytes().startswith(b"\x89PNG")
    # The terminal shows only tables that have data, and every run by name.
    printed = capsys.readouterr().out
    assert "sdpo.0" in printed and "Epistemic words (paper), before -> after" in printed
