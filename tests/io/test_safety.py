"""Secrets are hidden, damaged downloads are found, and text of a model stays text."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from sdjax import config
from sdjax.errors import UserError
from sdjax.io import hub, redact, run_dir
from sdjax.io.files import to_json
from sdjax.jobs import bench_job
from sdjax.logs.writers import Lines
from sdjax.main import main
from sdjax.tasks.arithmetic import Arithmetic

PLANTED = {
    "HF_TOKEN": "hf_plantedPLANTEDplanted",
    "WANDB_API_KEY": "0123456789abcdefplanted",
    "MY_SERVER_PASSWORD": 'pass"word\\with-ü',
    "aws_secret_access_key": "abc/def+ghi/planted",
}


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return PLANTED.values()


def spoken(text, planted):
    """Returns the planted secrets that a text contains, plain or as JSON writes them."""
    return [s for s in planted if s in text or json.dumps(s)[1:-1] in text]


def job(secret, **changes):
    server = config.Server(url=f"http://me:{secret}@127.0.0.1:1", reload="folder")
    return config.Train(
        out="runs/x",
        task=Arithmetic(),
        model=config.Model(path=f"./models/{secret}"),
        rollout=config.Rollout(server=server),
        **changes,
    )


@pytest.mark.parametrize("name", PLANTED)
def test_no_secret_is_in_the_config_dump(planted, tmp_path, name):
    run_dir.claim(str(tmp_path / "run"), job(PLANTED[name]), resume=False)
    written = (tmp_path / "run" / "config.json").read_text()
    assert not spoken(written, planted)
    assert json.loads(written)["rollout"]["server"]["url"] == "http://***@127.0.0.1:1"
    assert json.loads(written)["model"]["path"] == "./models/***"


def test_no_secret_is_in_bench_json(planted, monkeypatch):
    secret = PLANTED["HF_TOKEN"]
    monkeypatch.setattr(sys, "argv", ["main", "--model.path", f"https://u:{secret}@host/x"])
    cfg = config.Bench(out="x", model=config.Model(path=f"./{secret}"))
    about = json.dumps(bench_job._about(cfg, bench_job.peaks.known("cpu")))
    assert not spoken(about, planted) and "https://***@host/x" in about


@pytest.mark.parametrize("name", PLANTED)
def test_no_secret_is_in_an_error_or_a_log(planted, tmp_path, capsys, name):
    secret = PLANTED[name]
    file = tmp_path / "c.py"
    file.write_text(
        "from sdjax.config import *\nfrom sdjax.tasks.arithmetic import Arithmetic\n"
        f"config = Train(out='x', task=Arithmetic(), model=Model(path={f'./no/{secret}'!r}))\n"
    )
    assert main(["--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert not spoken(said, planted) and "./no/***" in said


# 40 secrets that users have: variables, addresses, headers and keys of providers.
LETTERS = "Zq7Xw2Lp9Rt4Vb6Nm1Kc8Jd3"
NAMED = {
    **{name: f"n{i}-{LETTERS}" for i, name in enumerate((
        "GITHUB_PAT", "PASS", "OPENAI_KEY2", "DB_PASSWD", "MYSQL_PWD", "HFTOKEN", "API_TOKENS",
        "CLIENT_SECRETS", "AZURE_SAS", "SENTRY_DSN", "PROXY_AUTH", "MY_JWT", "SESSION_COOKIE",
        "key_passphrase", "GOOGLE_CREDENTIALS", "SERVICE_APIKEY",
    ))},
}  # fmt: skip
SHAPED = [
    f"https://h/x?token={LETTERS}",
    f"https://h/x?a=1&api_key={LETTERS}",
    f"https://h/x?sig={LETTERS}&b=2",
    f"https://h/x?X-Goog-Signature={LETTERS}",
    f"https://h/x?X-Amz-Signature={LETTERS}",
    f"https://h/x?X-Amz-Security-Token={LETTERS}",
    f"https://h/x?AWSAccessKeyId={LETTERS}",
    f"https://h/x?access_token={LETTERS}",
    f"https://h/x?key={LETTERS}",
    f"https://u:{LETTERS}@h/x",
    f"Authorization: Bearer {LETTERS}",
    f"Authorization: Basic {LETTERS}=",
    f"github_pat_{LETTERS}",
    f"ghp_{LETTERS}",
    f"hf_{LETTERS}",
    f"glpat-{LETTERS}",
    f"xoxb-1-{LETTERS}",
    f"npm_{LETTERS}",
    f"sk-{LETTERS}",
    f"sk-ant-{LETTERS}",
    f"gsk_{LETTERS}",
    f"AIza{LETTERS}{LETTERS}",
    f"nvapi-{LETTERS}",
    f"eyJhbGciOiJI.eyJzdWIiOiIx.{LETTERS}",
]


@pytest.mark.heavy
def test_none_of_40_secrets_leaves_the_process(tmp_path):
    """Looks at a run's config.json, its error with --debug and the traceback of a bug."""
    assert len(NAMED) + len(SHAPED) == 40
    file = tmp_path / "c.py"
    file.write_text(
        "import logging, os, sys, warnings\n"
        "from sdjax.config import *\nfrom sdjax.io import run_dir\n"
        "from sdjax.tasks.arithmetic import Arithmetic\n"
        f"said = ' '.join([os.environ[n] for n in {list(NAMED)}] + {SHAPED})\n"
        "print(said)\nwarnings.warn(said)\nlogging.getLogger('some.library').error(said)\n"
        "config = Train(out='run', task=Arithmetic(), model=Model(path=said, revision=said))\n"
        "run_dir.claim('dumped', config, resume=False)\n"
        "if 'bug' in os.environ: raise KeyError(said)\n"
    )
    env = dict(os.environ) | NAMED | {"JAX_PLATFORMS": "cpu"}
    for extra, more in ((["--debug"], {}), ([], {"bug": "1"})):
        done = subprocess.run(
            [sys.executable, "-m", "sdjax.main", "--config", str(file), *extra],
            env=env | more | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        out = done.stdout + done.stderr
        assert done.returncode != 0 and "Traceback" in out if extra else True
        assert out.count("***") > 40 and LETTERS not in out, out
    written = "".join(f.read_text() for f in tmp_path.rglob("*.json"))
    assert written.count("***") >= 40 and LETTERS not in written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sk-learn-pipelines-and-more", "sk-learn-pipelines-and-more"),
        ("a risk-free monkey=banana?key words", "a risk-free monkey=banana?key words"),
        ("https://host/x?page=2&token=abc&b=1", "https://host/x?page=2&token=***&b=1"),
        ("basic arithmetic", "basic arithmetic"),
        ("https://me:pw@host/a b", "https://***@host/a b"),
        ("http://user@host", "http://***@host"),
        ("mail me@host", "mail me@host"),
        ("hf://datasets/a/b@main/x", "hf://datasets/a/b@main/x"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("a token hf_ABCDEFGHIJKLMNOPqrst in a text", "a token *** in a text"),
        ("tokens, keys and passwords", "tokens, keys and passwords"),
    ],
)
def test_what_gives_itself_away_is_hidden_and_the_rest_is_not(text, shown):
    assert redact.redact(text) == shown


def test_a_path_and_a_short_value_are_not_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("KEY", "main")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true-or-false")
    text = f"{tmp_path} main true-or-false"
    assert redact.redact(text) == text


def test_an_error_of_several_lines_and_terminal_codes_is_one_plain_line():
    said = redact.one_line("row 3:\n\x1b[2Jgone\u2028next\x07 \ud800 ü")
    assert said == "row 3: \\x1b[2Jgone next\\x07 \\ud800 ü"


HOSTILE = "a\u2028b\u2029c\x85d\ud800e\x00f\r\n</script>\x1b[2J ü 日本"


def test_model_text_stays_on_its_line_of_jsonl_and_comes_back(tmp_path):
    lines = Lines(tmp_path / "rollouts.jsonl", after=None)
    lines.write([{"step": 1, "completion": HOSTILE, HOSTILE: [HOSTILE]}, {"step": 2}])
    lines.close()
    data = (tmp_path / "rollouts.jsonl").read_bytes()
    assert data.isascii() and len(data.splitlines()) == len(data.decode().splitlines()) == 2
    first = json.loads(data.splitlines()[0])
    assert first["completion"] == HOSTILE and first[HOSTILE] == [HOSTILE]
    assert json.loads(to_json({"nan": float("nan"), "text": HOSTILE}))["text"] == HOSTILE


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Returns a function that adds a file to a hub cache of its layout, and returns its path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(name, contents, digest):
        blob = tmp_path / "models--a--b" / "blobs" / digest
        link = tmp_path / "models--a--b" / "snapshots" / "1" / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(contents)
        link.symlink_to(blob)
        return link

    return add


def large(contents):
    return hashlib.sha256(contents).hexdigest()


def small(contents):
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


@pytest.mark.parametrize("digest", [large, small])
def test_a_downloaded_file_that_is_not_what_the_hub_has_is_named(cached, digest):
    contents = bytes(range(256)) * 40
    whole = cached("model.safetensors", contents, digest(contents))
    hub.check([whole])
    for damaged in (contents[:-1], contents[:100] + b"x" + contents[101:], b""):
        whole.resolve().write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: damaged.*remove .*blobs"):
            hub.check([whole])
    whole.resolve().write_bytes(contents)
    hub.check([whole])


def test_a_file_found_whole_is_not_read_again_until_it_changes(cached, monkeypatch):
    file = cached("config.json", b"{}", small(b"{}"))
    hub.check([file])
    monkeypatch.setattr(hub, "PART", 0)  # it would read nothing, and find it damaged
    hub.check([file])
    os.utime(file.resolve(), ns=(1, 1))
    with pytest.raises(UserError):
        hub.check([file])


def test_a_local_file_without_a_hash_is_left_alone(tmp_path):
    file = tmp_path / ("a" * 64)
    file.write_text("no blob of the hub")
    hub.check([file])
