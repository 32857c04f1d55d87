"""A resumed run is held to its record: fields, defaults, fingerprints, and what is allowed."""

import json
import shlex
from dataclasses import replace

import marks
import pytest

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import environment, run_dir, run_record
from sdjax.tasks.arithmetic import Arithmetic

MARKS = {"data": "4 rows, sha256 a", "tokenizer": "sha256 t"}


def job(out, **changes):
    made = config.Train(out=str(out), task=Arithmetic(), steps=9)
    sections = {
        name: replace(getattr(made, name), **fields)
        for name, fields in changes.items()
        if type(fields) is dict and name != "out_of_domain"
    }
    return replace(made, **changes | sections)


@pytest.fixture
def made(tmp_path):
    """Returns the directory of a run with a first result."""
    run_dir.claim(str(tmp_path), job(tmp_path), resume=False, fingerprints=MARKS)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    return tmp_path


def resumed(out, after=4, marks=MARKS, **changes):
    """Checks and writes the record of a run that goes on."""
    cfg = job(out, resume=True, **changes)
    run_dir.check_same(cfg, after)
    folder = run_dir.claim(str(out), cfg, resume=True, after=after, fingerprints=marks)
    run_dir.record(folder, cfg, after, marks)


def read(out, name="run.json"):
    return json.loads((out / name).read_text())


CHANGES = {
    "a number": ({"optim": {"lr": 3e-4}}, "optim.lr 1e-05 -> 0.0003", "optim.lr"),
    "a text": ({"reprompt": {"template": "{prompt}{solution}{feedback}"}}, "{prompt}", "reprompt"),
    "a switch": ({"reprompt": {"feedback": True}}, "feedback false -> true", "reprompt.feedback"),
    "to nothing": ({"loss": {"token_clip": None, "sampler_clip": None}}, "2.0 -> null", "loss"),
    "a list": ({"lora": {"matrices": ("q",)}}, 'matrices ["q", "k",', "lora"),
    "a seed": ({"seed": 1, "data": {"seed": 2}}, "data.seed 0 -> 2", "seed data.seed"),
    "the mesh": ({"mesh": {"fsdp": 2}}, "mesh.fsdp", "mesh"),
    "a task's field": ({"task": Arithmetic(held_out=7)}, "task.held_out 200 -> 7", "task.held_out"),
    "another set": ({"out_of_domain": {"o": Arithmetic()}}, "out_of_domain.o", "out_of_domain"),
    "evaluations": ({"eval": {"every": 3, "k": 2}}, "eval.every 10 -> 3, eval.k 4 -> 2", "eval"),
    "slots": ({"rollout": {"slots": 8}}, "rollout.slots 0 -> 8", "rollout"),
}


@pytest.mark.parametrize(
    ("changes", "said", "allowed"), marks.heavy_but_every_third(CHANGES.values()), ids=CHANGES
)
def test_a_changed_field_is_refused_unless_it_is_named_and_then_recorded(
    made, capsys, changes, said, allowed
):
    before = (made / "config.json").read_bytes(), (made / "run.json").read_bytes()
    with pytest.raises(UserError) as refused:
        resumed(made, **changes)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert ((made / "config.json").read_bytes(), (made / "run.json").read_bytes()) == before
    remedy = str(refused.value).rpartition("--allow ")[2]
    for names in (remedy.split(), allowed.split()):
        assert run_dir.check_same(job(made, resume=True, allow=tuple(names), **changes), 4)
    resumed(made, allow=tuple(remedy.split()), **changes)
    recorded = read(made)["changes"]
    assert recorded and all(change["after"] == 4 for change in recorded)
    assert capsys.readouterr().out.count("changed from step 5 on: ") == len(recorded)
    # The same command again changes nothing more, with or without the names.
    resumed(made, after=5, **changes)
    assert read(made)["changes"] == recorded


FREE = {
    "more steps": {"steps": 20},
    "logging": {"log": {"progress": False, "rollouts_per_step": 2}},
    "checkpoints": {"checkpoint": {"every": 7, "keep": 5}},
    "alarms": {"alarm": {"ood_drop": 0.5, "stop": True}},
    "a profile": {"profile": None},
    "when it gives up": {"optim": {"most_skipped": 0}},
}


@pytest.mark.parametrize("changes", FREE.values(), ids=FREE)
def test_what_changes_no_number_needs_no_name(made, changes):
    resumed(made, **changes)
    assert read(made)["starts"][-1]["after"] == 4


def test_no_other_field_of_a_job_is_free_of_naming():
    assert set(run_record.FREE) == {"Train", "SFT", "Evaluate", "Study", "Sweep"}
    for name, free in run_record.FREE.items():
        cls = getattr(config, name)
        fields = {f for f in cls.__dataclass_fields__}
        assert {path.partition(".")[0] for path in free} <= fields, name


def test_a_field_that_an_older_config_lacks_had_its_default(made):
    old = read(made, "config.json")
    del old["allow"], old["seed"], old["lora"], old["eval"]["at_ends"], old["optim"]["warmup_steps"]
    (made / "config.json").write_text(json.dumps(old))
    (made / "run.json").unlink()
    assert run_dir.check_same(job(made, resume=True), 4) == []
    with pytest.raises(UserError, match=r"fields: optim.warmup_steps 10 -> 3; .*--allow optim"):
        run_dir.check_same(job(made, resume=True, optim={"warmup_steps": 3}), 4)
    resumed(made)
    assert read(made)["fingerprints"] == MARKS and read(made, "config.json")["seed"] == 0


def test_a_change_that_no_kept_step_has_seen_leaves_no_trace(made):
    resumed(made, after=4, allow=("optim",), optim={"lr": 1.0})
    # It was killed before its next checkpoint, so step 4 is the newest again.
    with pytest.raises(UserError, match=r"optim.lr 1e-05 -> 1.0"):
        resumed(made, after=4, optim={"lr": 1.0})
    resumed(made, after=4)
    assert read(made)["changes"] == [] and read(made, "config.json")["optim"]["lr"] == 1e-5


def test_every_change_of_a_field_is_kept_in_order(made):
    for after, lr in ((2, 1e-4), (5, 1e-3), (7, 1e-5)):
        resumed(made, after=after, allow=("optim.lr",), optim={"lr": lr})
    kept = [(c["after"], c["old"], c["new"]) for c in read(made)["changes"]]
    assert kept == [(2, 1e-5, 1e-4), (5, 1e-4, 1e-3), (7, 1e-3, 1e-5)]


def test_other_data_or_another_tokenizer_are_refused_unless_named_or_explained(made, capsys):
    other = {"data": "5 rows, sha256 b", "tokenizer": "sha256 u"}
    said = "data 4 rows, sha256 a -> 5 rows, sha256 b, tokenizer sha256 t -> sha256 u"
    with pytest.raises(UserError, match=rf"{said}; .*--allow data tokenizer"):
        resumed(made, marks=other)
    with pytest.raises(UserError, match="--allow tokenizer"):
        resumed(made, marks=other, allow=("data",))
    # Another seed of the task makes other data, but no other tokenizer.
    task = {"task": Arithmetic(seed=3), "allow": ("task.seed",)}
    with pytest.raises(UserError, match="--allow tokenizer"):
        resumed(made, marks=other, **task)
    resumed(made, marks=other, allow=("data", "tokenizer"))
    assert [c["name"] for c in read(made)["changes"]] == ["data", "tokenizer"]
    assert read(made)["fingerprints"] == other


def edited(monkeypatch, **files):
    """Makes the code of a run that of these files, by name without suffix, with their checksums."""
    code = {f"{name}.py": text for name, text in files.items() if text}
    monkeypatch.setattr(run_record.code_files, "checksums", lambda: code)


def test_changed_code_is_said_and_recorded_with_its_step_but_not_refused(
    tmp_path, capsys, monkeypatch
):
    edited(monkeypatch, task="a", grader="b", gone="c")
    run_dir.claim(str(tmp_path), job(tmp_path), resume=False, fingerprints=MARKS)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert read(tmp_path)["code"] == {"task.py": "a", "grader.py": "b", "gone.py": "c"}
    edited(monkeypatch, task="a", grader="B", new="d")
    resumed(tmp_path)
    said = capsys.readouterr().out
    assert said == "changed from step 5 on: the code of gone.py, grader.py, new.py\n"
    changes = [
        {"after": 4, "name": "gone.py", "old": "c", "new": None},
        {"after": 4, "name": "grader.py", "old": "b", "new": "B"},
        {"after": 4, "name": "new.py", "old": None, "new": "d"},
    ]
    assert read(tmp_path)["changes"] == changes
    assert read(tmp_path)["code"] == {"task.py": "a", "grader.py": "B", "new.py": "d"}
    # The same code again says nothing; the old code again is a change back.
    resumed(tmp_path, after=5)
    assert capsys.readouterr().out == "" and read(tmp_path)["changes"] == changes
    edited(monkeypatch, task="a", grader="b", gone="c")
    resumed(tmp_path, after=7)
    assert len(read(tmp_path)["changes"]) == 6 and "from step 8 on" in capsys.readouterr().out


def test_code_that_no_kept_step_has_seen_leaves_no_trace(made, capsys, monkeypatch):
    before = read(made)["code"]
    assert "sdjax/io/run_record.py" in before and "test_run_record.py" in before
    other = {**before, "test_run_record.py": "x"}
    monkeypatch.setattr(run_record.code_files, "checksums", lambda: other)
    resumed(made)
    assert [c["name"] for c in read(made)["changes"]] == ["test_run_record.py"]
    monkeypatch.setattr(run_record.code_files, "checksums", lambda: before)
    resumed(made)
    assert read(made)["changes"] == [] and read(made)["code"] == before
    assert capsys.readouterr().out.count("changed from step 5 on: the code of test_run") == 1


def test_a_record_without_code_is_compared_with_none(made, capsys):
    old = read(made)
    del old["code"]
    (made / "run.json").write_text(json.dumps(old))
    resumed(made)
    assert read(made)["changes"] == [] and capsys.readouterr().out == ""
    assert read(made)["code"]


def test_what_cannot_be_allowed_is_named(made):
    with pytest.raises(UserError, match=r"allow is 'optim.lrr': .* perhaps you meant optim.lr"):
        resumed(made, allow=("optim.lrr",))
    sft = config.SFT(out=str(made), source="x", resume=True, allow=("task",))
    with pytest.raises(UserError, match="holds a run of another job"):
        run_dir.check_same(sft, 4)


def test_a_directory_without_results_holds_nothing_to_be_compared_with(tmp_path):
    run_dir.claim(str(tmp_path), job(tmp_path), resume=False)
    changed = job(tmp_path, resume=True, seed=5)
    assert run_dir.check_same(changed, 0) == []
    run_dir.claim(str(tmp_path), changed, resume=True)
    assert read(tmp_path, "config.json")["seed"] == 5 and read(tmp_path)["changes"] == []


def test_a_damaged_record_is_named(made):
    (made / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not JSON .* choose another --out"):
        resumed(made)


def test_each_start_records_versions_commit_devices_and_command(made, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--config", "my c.py", "--resume"])
    resumed(made)
    first, second = read(made)["starts"]
    assert (first["after"], second["after"]) == (0, 4)
    assert shlex.split(second["command"])[3:] == ["--config", "my c.py", "--resume"]
    for start in (first, second):
        assert {"time", "device", "devices", "hosts", *environment.versions()} <= start.keys()
        assert start["jax"] and start["transformers"] and start["python"].startswith("3.")
