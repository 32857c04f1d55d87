"""The comparison of two checkouts: a copy writes the same, and a changed file is found."""

import json
import shutil

import pytest
import runs
import same_bytes
from paths import ROOT

from sdjax.jobs import train_job


@pytest.mark.slow
def test_a_copy_of_the_checkout_writes_the_same(tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "sdjax", copy / "sdjax")
    args = [str(copy), "--steps", "2", "--only", "sdpo_full", "--folder", str(tmp_path / "runs")]
    assert same_bytes.main(args) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(same_bytes.KINDS)
    assert all(line.endswith(": the same") and "(0)" not in line for line in said)


@pytest.mark.heavy
def test_every_changed_kind_of_file_is_found(model, tmp_path, capsys):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    each = {"steps": 2, "checkpoint": {"every": 1, "export": True}, "eval": {"every": 1}}
    train_job.run(runs.job(model, ours / "run", **each))
    shutil.copytree(ours, theirs)
    capsys.readouterr()
    assert same_bytes.compare(ours, theirs, ["run"])
    said = capsys.readouterr().out.splitlines()
    assert all(line.endswith(": the same") and "(0)" not in line for line in said)

    run = theirs / "run"
    rows = runs.lines(run / "metrics.jsonl")
    rows[-1] |= {"loss/total": rows[-1]["loss/total"] * (1 + 1e-15) + 1e-30, "time/step_s": 0.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(run / "checkpoints" / "2")
    shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "2")
    for part in ("model/config.json", "rollouts.jsonl", "evaluations.json", "answers/000002.jsonl"):
        with (run / part).open("ab") as file:
            file.write(b" ")
    assert not same_bytes.compare(ours, theirs, ["run"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(same_bytes.KINDS)
    assert all(": different: run/" in line for line in said)
