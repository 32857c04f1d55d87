"""Trackers get the metrics, the config and answers of a run, and cannot end it."""

import functools
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import http_servers
import pytest
import runs
import wandb_server
from paths import ROOT
from runs import Letters

from sdjax import config
from sdjax.errors import UserError
from sdjax.logs import trackers, writers

SECRET = "planted-secret-0123456789"
METRICS = {"rollout/reward": 0.25, "eval/avg@4": 0.5, "ood/other_task/pass@1": float("nan")}


def row(number, **changes):
    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 1?"}]
    return {
        "set": "sums",
        "id": f"held-{number}",
        "messages": asked,
        "completion": f"hmm \ud800 \0 2, said {SECRET}",
        "reward": number,
        "correct": True,
    } | changes


def job(out, *to, **changes):
    log = config.Log(to=to, progress=False, project="tests", samples=2, **changes)
    name = f"token {SECRET}"
    return config.Train(out=str(out), task=Letters(), seed=7, log=log, profile=name)


def tracked(cfg, steps, after=None):
    """Writes these steps as a run does, with two answers to each of three questions."""
    out = ROOT / cfg.out
    with writers.Writer(out, cfg.log, steps=9, primary=True, after=after, job=cfg) as writer:
        for step in steps:
            writer.samples(step, [row(i // 2) for i in range(6)])
            writer.write(step, METRICS | {"rollout/reward": step / 4})


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", SECRET)


def test_tensorboard_gets_config_and_answers(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    tracked(job(tmp_path, "tensorboard"), [0])
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = {v.tag: v for event in runs.events(file) for v in event.summary.value}
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["seed"].number_value == 7 and given["profile"].string_value == "token ***"
    texts = [values[f"samples/{i}/text_summary"].tensor.string_val[0].decode() for i in range(2)]
    assert "**question**: 1 + 1?" in texts[0] and "hmm ? \\0 2, said ***" in texts[0]
    assert "**reward**: 0.0" in texts[0] and "**reward**: 1.0" in texts[1]
    assert SECRET.encode() not in file.read_bytes() and "samples/2/text_summary" not in values


def leveldb_records(data):
    """Yields the records of a W&B file: 7 bytes, then a log as LevelDB's in blocks of 32 KiB."""
    at, record = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:  # no room for a header, so the block ends here
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        if kind in (1, 4):  # the whole of a record, or its last part
            yield record
            record = b""
        at += 7 + size


@pytest.mark.heavy
@needs("wandb")
def test_wandb_keeps_a_run_offline_and_goes_on_with_it(tmp_path, monkeypatch):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = job(tmp_path, "wandb")
    trackers.check(cfg.log)
    tracked(cfg, [0, 1, 2])
    tracked(cfg, [2, 3], after=1)
    key = json.loads((tmp_path / trackers.KEYS).read_text())["wandb"]
    runs = sorted((tmp_path / "wandb").glob(f"offline-run-*-{key}/run-{key}.wandb"))
    assert len(runs) == 2
    steps, settings = [], {}
    for file in runs:
        for data in leveldb_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = {
                    "/".join([*i.nested_key] or [i.key]): json.loads(i.value_json)
                    for i in record.history.item
                }
                if "rollout/reward" in items:
                    steps.append((items["_step"], items["rollout/reward"]))
                    assert items["eval/avg@4"] == 0.5 and items["samples/nrows"] == 2
            for item in record.run.config.update:
                settings[item.key] = json.loads(item.value_json)
    assert steps == [(0, 0), (1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]
    assert settings["seed"] == 7 and settings["task"]["questions"] == 64
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    (table,) = list((runs[0].parent / "files" / "media" / "table").glob("samples_0_*.json"))
    assert json.loads(table.read_text())["data"][1][-2:] == [1.0, True]


@pytest.mark.heavy
@needs("trackio")
def test_trackio_has_one_run_after_a_resume(tmp_path):
    """In another process, because trackio reads its folder's name when it is imported."""
    script = (
        "import sys, test_trackers as t; from pathlib import Path\n"
        "cfg = t.job(Path(sys.argv[1]), 'trackio')\n"
        "t.trackers.check(cfg.log); t.tracked(cfg, [0, 1, 2]); t.tracked(cfg, [3], after=2)\n"
    )
    places = [str(ROOT), str(ROOT / "tests" / "logs"), str(ROOT / "tests" / "support"), *sys.path]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(places)
    command = [sys.executable, "-c", script, str(tmp_path / "one")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0 and "warning" not in done.stdout, done.stderr
    with closing(sqlite3.connect(tmp_path / "kept" / "tests.db")) as base:
        lines = base.execute("select run_id, step, metrics from metrics order by id").fetchall()
        (given,) = base.execute("select distinct config from configs").fetchall()
    metrics = [(step, json.loads(text)) for _, step, text in lines]
    rewards = [(step, m["rollout/reward"]) for step, m in metrics if "rollout/reward" in m]
    assert len({run for run, *_ in lines}) == 1
    assert rewards == [(0, 0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert all(m["eval/avg@4"] == 0.5 for _, m in metrics if "rollout/reward" in m)
    (first, *_) = [m["samples"]["_value"] for _, m in metrics if "samples" in m]
    assert [r["id"] for r in first] == ["held-0", "held-1"]
    assert json.loads(given[0])["seed"] == 7 and SECRET not in str(lines) + str(given)


@pytest.fixture
def mlflow_files(tmp_path, monkeypatch):
    """Lets MLflow keep runs in a folder, which needs no database."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'kept'}")
    return tmp_path / "kept"


@pytest.mark.heavy
@needs("mlflow")
def test_mlflow_has_one_run_after_a_resume(tmp_path, mlflow_files):
    from mlflow import MlflowClient

    cfg = job(tmp_path / "one", "mlflow")
    trackers.check(cfg.log)
    tracked(cfg, [0, 1, 2])
    tracked(cfg, [3], after=2)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    rewards = client.get_metric_history(run.info.run_id, "rollout/reward")
    assert [(m.step, m.value) for m in rewards] == [(0, 0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert run.data.metrics["eval/avg_at_4"] == 0.5 and run.info.status == "FINISHED"
    assert run.data.params["seed"] == "7" and run.data.params["profile"] == "token ***"
    (page, *others) = [a.path for a in client.list_artifacts(run.info.run_id, "samples")]
    assert page == "samples/000000.md" and len(others) == 3
    kept = [file.read_text() for file in mlflow_files.rglob("*") if file.is_file()]
    assert kept and not any(SECRET in text for text in kept)


class Failing(http_servers.Handler):
    """Answers as MLflow's server does for the first lines, and then breaks every connection."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        metrics = self.path.endswith("log-batch")
        self.server.lines += metrics
        if metrics and self.server.lines > self.server.answered:
            self.connection.close()
            return
        info = {"run_id": "a1", "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1"}
        answer = {"experiment_id": "1", "run": {"info": info}, "run_info": info}
        self.answer(200, answer)

    def do_GET(self):
        self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"})


@pytest.mark.heavy
@needs("mlflow")
def test_a_network_that_fails_in_the_middle_is_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cfg = job(tmp_path, "mlflow")
    # Three calls for the config of a run of over 200 fields, then one line of metrics.
    with http_servers.running(Failing, lines=0, answered=4) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        with writers.Writer(tmp_path, cfg.log, steps=5, primary=True, job=cfg) as writer:
            for step in range(1, 6):
                writer.write(step, METRICS)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == 2 and "metrics.jsonl has every line" in said[0]
    assert said[0].startswith("warning: mlflow: MlflowException")
    assert "mlflow: 4 of 5 lines have not arrived" in said[1]


def online(folder):
    """Logs a run to a server of W&B that breaks off in the middle; prints what it got."""
    with wandb_server.serving() as server:
        os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
        trackers.PATIENCE_S = 5.0
        cfg = job(folder, "wandb")
        trackers.check(cfg.log)
        with writers.Writer(folder, cfg.log, steps=5, primary=True, job=cfg) as writer:
            for step in range(1, 3):
                writer.write(step, METRICS)
            until = time.monotonic() + 60
            while "rollout/reward" not in server.streamed and time.monotonic() < until:
                time.sleep(0.1)
            server.cut_off = True
            for step in range(3, 6):
                writer.write(step, METRICS)
        print("ended;", "rollout/reward" in server.streamed, SECRET in server.streamed)


@pytest.mark.heavy
@needs("wandb")
def test_a_server_of_wandb_that_breaks_off_is_one_warning_and_the_program_ends(tmp_path):
    script = "import sys, test_trackers; from pathlib import Path\n"
    script += "test_trackers.online(Path(sys.argv[1]))\n"
    places = [str(ROOT), str(ROOT / "tests" / "logs"), str(ROOT / "tests" / "support"), *sys.path]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=kept | {"PYTHONPATH": os.pathsep.join(places), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith("step")]
    assert said == [
        "warning: wandb: TimeoutError: Timed out finishing run.; metrics.jsonl has every line",
        "ended; True False",
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


class Broken:
    """A tracker that works for one line; a real one raises such errors when its network fails."""

    key = "one"

    def __init__(self, run, hangs=False):
        self.got, self.hangs = [], hangs

    def write(self, step, numbers):
        if self.hangs:
            time.sleep(60)
        if self.got:
            raise ConnectionError(f"no route, token {SECRET}")
        self.got.append(step)

    def samples(self, step, rows):
        pass

    def close(self, ok):
        pass


def test_a_failing_tracker_warns_once_and_counts_what_is_missing():
    tracker = trackers.Background("wandb", lambda: Broken(None))
    for step in range(4):
        tracker.write(step, {})
    tracker.close(ok=True)
    first, second = tracker.problems()
    assert first == ("wandb: ConnectionError: no route, token ***; metrics.jsonl has every line")
    assert second.startswith("wandb: 3 of 4 lines have not arrived;")


def test_a_tracker_that_cannot_start_is_a_warning():
    def make():
        raise SystemExit("no such project")

    tracker = trackers.Background("wandb", make)
    tracker.write(1, {})
    tracker.close(ok=True)
    assert [line.split(";")[0] for line in tracker.problems()] == [
        "wandb: SystemExit: no such project",
        "wandb: 1 of 1 lines have not arrived",
    ]


@pytest.mark.parametrize(("ok", "limit"), [(True, "PATIENCE_S"), (False, "HURRIED_S")])
def test_a_tracker_that_hangs_does_not_hold_up_the_end(ok, limit, monkeypatch):
    assert trackers.HURRIED_S < 5 < trackers.PATIENCE_S
    monkeypatch.setattr(trackers, limit, 0.2)
    tracker = trackers.Background("wandb", lambda: Broken(None, hangs=True))
    tracker.write(1, {})
    start = time.monotonic()
    tracker.close(ok)
    assert time.monotonic() - start < 5
    assert [*tracker.problems()] == [
        "wandb: 1 of 1 lines have not arrived within 0.2 s; metrics.jsonl has every line"
    ]


def test_a_sink_gets_every_line_and_its_failure_is_one_warning(tmp_path, capsys):
    seen = []

    def sink(step, metrics):
        seen.append((step, dict(metrics)))
        metrics.clear()
        raise RuntimeError(f"offline, {SECRET}")

    tracked(job(tmp_path, sink=sink), [1, 2])
    assert [(step, given["rollout/reward"]) for step, given in seen] == [(1, 0.25), (2, 0.5)]
    assert all(given.keys() == METRICS.keys() for _, given in seen)
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert said == ["warning: log.sink: RuntimeError: offline, ***"]
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/reward"] for line in kept] == [0.25, 0.5]


@pytest.mark.parametrize("kind", ["wandb", "trackio", "mlflow"])
def test_a_missing_extra_is_named_with_its_command(kind, monkeypatch, tmp_path):
    (tmp_path / kind).mkdir()  # a folder of that name, such as W&B's own, is no package
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == kind else found(name)
    )
    with pytest.raises(UserError, match=rf"log.to has '{kind}': .* pip install 'sdjax\[{kind}\]'"):
        trackers.check(config.Log(to=(kind,)))


@pytest.mark.heavy
@needs("wandb")
def test_wandb_without_a_key_is_refused_before_the_weights_are_read(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(
        "from sdjax.config import *\nfrom sdjax.tasks.arithmetic import Arithmetic\n"
        "config = Train(out='out', task=Arithmetic(size=20, held_out=2), "
        "model=Model(path='nowhere'), log=Log(to=('wandb',)))\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    environment["WANDB_BASE_URL"] = "http://127.0.0.1:1"
    done = subprocess.run(
        [sys.executable, "-m", "sdjax.main", "--config", str(file)],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "log.to has 'wandb'" in line and "wandb login" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("runs/quickstart/sdpo/0", "quickstart/sdpo/0"),
        ("/mnt/x/long/runs/sums", "long/sums"),
        ("gs://bucket/deep/er/sums", "er/sums"),
        ("./one", "one"),
    ],
)
def test_a_run_is_named_by_its_directory(out, name):
    assert writers._run_name(out) == name


def test_functions_of_a_config_have_a_name_that_stays(tmp_path):
    public = config.to_public(job(tmp_path, sink=print))
    assert public["log"]["sink"] == "builtins:print"
    bound = functools.partial(print, "x")
    assert config.to_public(job(tmp_path, sink=bound))["log"]["sink"] == "functools:partial"
