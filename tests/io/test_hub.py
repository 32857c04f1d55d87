"""Data sets of the hub: from a server, from the cache, and not at all; pushed models."""

import hashlib
import http.server
import json
import os
import threading

import huggingface_hub.constants
import pushing
import pytest
from disks import mounted

from sdjax import config, tasks
from sdjax.data import sources
from sdjax.errors import UserError
from sdjax.io import hub
from sdjax.models.files import resolve
from sdjax.tasks.gpqa import GPQA

COMMIT = "a" * 40
DATA = b'{"question": "1+1?", "answer": 2}\n{"question": "1+2?", "answer": 3}\n'
BLOB = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for me/sums, and with an error for other repositories."""

    ERRORS = {  # noqa: RUF012
        "me/gated": (403, "GatedRepo"),
        "Idavidrein/gpqa": (403, "GatedRepo"),
        "me/none": (401, "RepoNotFound"),
        "nowhere": (404, "RevisionNotFound"),
        "me/busy": (503, ""),
    }

    def log_message(self, *args):
        pass

    def reply(self, code, body, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        for part, (code, name) in self.ERRORS.items():
            if part in self.path:
                return self.reply(code, b"{}", X_Error_Code=name)
        if "/resolve/" in self.path:
            return self.reply(200, DATA, ETag=f'"{BLOB}"', X_Repo_Commit=COMMIT)
        if "/tree/" in self.path:
            files = [
                {"type": "file", "path": path, "size": len(DATA), "oid": BLOB}
                for path in ("train.jsonl", "README.md")
            ]
            return self.reply(200, json.dumps(files).encode(), Content_Type="application/json")
        found = {"id": "me/sums", "sha": COMMIT, "siblings": [{"rfilename": "train.jsonl"}]}
        return self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_GET


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Returns an empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def server(monkeypatch):
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=served.serve_forever, args=(0.02,))
    thread.start()
    address = f"http://127.0.0.1:{served.server_port}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield
    served.shutdown()
    thread.join()
    served.server_close()


def fill(cache, *paths):
    """Writes the files of me/sums into the cache as a download of each file does."""
    repository = cache / "datasets--me--sums"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    (repository / "blobs" / BLOB).write_bytes(DATA)
    for path in paths:
        file = repository / "snapshots" / COMMIT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(os.path.relpath(repository / "blobs" / BLOB, file.parent))


def rows(source):
    return [row for _, row in sources.read_rows(f"hf://datasets/{source}")]


def fault(source):
    """Returns the one line that says why a source cannot be read."""
    with pytest.raises(UserError) as error:
        rows(source)
    assert "\n" not in str(error.value) and source in str(error.value)
    return str(error.value)


def test_a_data_set_is_fetched_and_then_read_from_the_cache(hub_cache, server, monkeypatch):
    assert len(rows("me/sums")) == 2
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(rows("me/sums")) == len(rows("me/sums/train.*")) == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("me/gated", "access is restricted: accept its terms on its page, and set HF_TOKEN"),
        ("me/none", "no such repository, or a private one, which needs HF_TOKEN"),
        ("me/sums@nowhere", "no such revision"),
        ("me/busy", "503 Service Unavailable"),
        ("me/s ums", "Repo id must use alphanumeric chars"),
        ("me/sums/*.parquet", "files matches; it has train.jsonl"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub_cache, server, source, says):
    assert says in fault(source)


def test_a_cache_on_a_read_only_disk_is_named(hub_cache, server, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "-o", "ro") as disk:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(disk / "hub"))
        said = fault("me/sums")
        assert f"its cache {disk / 'hub'} cannot be written (Read-only file system)" in said
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system"):
            resolve.resolve("me/sums", files=["*.jsonl"])


def test_an_id_with_a_split_is_fetched_and_then_read_from_the_cache(hub_cache, server, monkeypatch):
    assert len(list(sources.read_rows("me/sums"))) == 2
    with pytest.raises(UserError, match=r"me/sums:test: no such file here, .* no split test, but"):
        list(sources.read_rows("me/sums:test"))
    with pytest.raises(UserError, match=r"me/none: no such file here, .* no such repository"):
        list(sources.read_rows("me/none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(list(sources.read_rows("me/sums:train"))) == 2


def test_gpqa_without_access_says_to_accept_its_terms(hub_cache, server):
    with pytest.raises(UserError) as error:
        tasks.load(GPQA(), config.Data())
    assert str(error.value) == (
        "hf://datasets/Idavidrein/gpqa/gpqa_diamond.csv: cannot be fetched (access is restricted: "
        "accept its terms on its page, and set HF_TOKEN)"
    )


@pytest.mark.parametrize("offline", [True, False])
def test_a_cached_file_is_read_without_a_network(hub_cache, no_network, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    reason = "HF_HUB_OFFLINE is set" if offline else "connection refused"
    assert f"cannot be fetched ({reason}" in fault("me/sums")
    fill(hub_cache, "train.jsonl")
    assert len(rows("me/sums/train.jsonl")) == len(rows("me/sums")) == 2
    assert "it has train.jsonl" in fault("me/sums/*.parquet")


def test_a_cache_with_some_parts_of_a_file_is_refused(hub_cache, no_network):
    fill(hub_cache, "d/train-00000-of-00002.jsonl", "d/test-00000-of-00001.jsonl")
    assert "the cache has 1 of the 2 parts of d/train" in fault("me/sums/d/train-*")
    assert "the cache has 1 of the 2 parts of d/train" in fault("me/sums")
    assert len(rows("me/sums/d/test-*.jsonl")) == 2
    assert len(rows("me/sums/d/train-00000-of-00002.jsonl")) == 2


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n# sums\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    return tmp_path


def test_a_folder_is_pushed_to_a_new_private_repository(exported):
    with pushing.hub() as served:
        hub.check_owner("me/sums")
        url = hub.push(exported, "me/sums", private=True, message="step 3")
    assert url == f"{served.url}/me/sums" and served.message == "step 3"
    assert served.created["visibility"] == "private" and served.created["name"] == "sums"
    assert served.files == {file.name: file.read_bytes() for file in exported.iterdir()}


def test_without_a_token_nothing_is_asked_and_nothing_is_pushed(exported):
    with pushing.hub(given=None) as served:
        hub.check_owner("you/sums")
        assert hub.push(exported, "me/sums", private=True, message="") is None
    assert not served.seen and not served.files


def test_a_token_of_another_owner_or_an_unknown_one_is_refused_at_the_start():
    with pushing.hub():
        hub.check_owner("lab/sums")
        with pytest.raises(UserError, match="the token is of me, lab: name one of these"):
            hub.check_owner("you/sums")
    with pushing.hub(token="hf_another"), pytest.raises(UserError, match="refuses the token: set"):
        hub.check_owner("me/sums")


def test_a_hub_that_cannot_be_reached_at_the_start_is_no_error(no_network, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: pushing.TOKEN)
    hub.check_owner("me/sums")


@pytest.mark.parametrize(
    ("refuses", "says"),
    [
        ("/commit/", r"refuses the token \(403\): it needs the right to write there"),
        ("nothing", "refuses the token"),
    ],
)
def test_a_refused_push_is_one_line(exported, refuses, says):
    with pushing.hub(token=pushing.TOKEN if refuses == "/commit/" else "hf_another") as served:
        served.refuses = refuses
        with pytest.raises(UserError, match=says) as error:
            hub.push(exported, "me/sums", private=True, message="")
    assert "\n" not in str(error.value) and not served.files
