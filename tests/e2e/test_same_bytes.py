"""The comparison of two checkouts: a copy writes the same, and a changed file is found."""

import json
import shutil

import pytest
import same_bytes
from paths import ROOT

pytestmark = pytest.mark.heavy


def test_a_copy_of_the_checkout_writes_the_same_and_every_changed_kind_is_found(tmp_path, capsys):
    copy, runs = tmp_path / "copy", tmp_path / "runs"
    shutil.copytree(ROOT / "sdjax", copy / "sdjax")
    name = "sdpo_full"
    args = [str(copy), "--steps", "2", "--only", name, "--folder", str(runs)]
    assert same_bytes.main(args) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(same_bytes.KINDS)
    assert all(line.endswith(": the same") and "(0)" not in line for line in said)

    theirs = runs / "theirs" / name
    rows = [json.loads(line) for line in (theirs / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {"loss/total": rows[-1]["loss/total"] * (1 + 1e-15) + 1e-30, "time/step_s": 0.0}
    (theirs / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(theirs / "checkpoints" / "2")
    shutil.copytree(theirs / "checkpoints" / "1", theirs / "checkpoints" / "2")
    for part in ("model/config.json", "rollouts.jsonl", "evaluations.json", "answers/000002.jsonl"):
        with (theirs / part).open("ab") as file:
            file.write(b" ")
    assert not same_bytes.compare(runs / "ours", runs / "theirs", [name])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(same_bytes.KINDS)
    assert all(": different: sdpo_full/" in line for line in said)
