"""A small stand-in for the Hugging Face hub that takes pushed models, for the hub's own client."""

import base64
import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import http_servers
import huggingface_hub.constants
import pytest

TOKEN = "hf_" + "a1" * 17


class Handler(http_servers.Handler):
    """Answers the calls of create_repo, upload_folder and whoami."""

    def do_GET(self):
        served = self.server
        if self.headers.get("Authorization") != f"Bearer {served.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/whoami-v2":
            orgs = [{"name": "lab"}]
            return self.answer(200, {"type": "user", "name": "me", "orgs": orgs})
        self.answer(200, {"id": "me/sums", "sha": "b" * 40, "siblings": []})

    def do_POST(self):
        served = self.server
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        served.seen.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {served.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        if served.refuses and served.refuses in self.path:
            return self.answer(403, {"error": "you may only read here"})
        if self.path == "/api/repos/create":
            served.created = json.loads(data)
            name = f"{served.created.get('organization') or 'me'}/{served.created['name']}"
            return self.answer(200, {"url": f"{served.url}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(data)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    content = line["value"]["content"]
                    served.files[line["value"]["path"]] = base64.b64decode(content)
                else:
                    served.message = line["value"]["summary"]
            commit = {"commitUrl": f"{served.url}/me/sums/commit/1", "commitOid": "c" * 40}
            return self.answer(200, commit)
        self.answer(404, {"error": f"the stand-in does not know {self.path}"})


@contextmanager
def hub(token=TOKEN, given=TOKEN):
    """Yields a running hub that knows `token`; the client has the token `given`, or none.

    It has the `files` that were pushed, and what was `created`. `refuses` is a part of a path that
    it forbids.
    """
    state = {"token": token, "refuses": "", "files": {}, "seen": [], "created": {}, "message": ""}
    running = http_servers.running(Handler, **state)
    with running as served, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
        patch.setattr(huggingface_hub, "get_token", lambda: given)
        patch.setattr(huggingface_hub.utils, "get_token", lambda: given)
        patch.setenv("HF_TOKEN", given or "")
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        yield served


def serve(folder):
    """Runs the stand-in until it is ended; prints its address and writes what is pushed."""
    with http_servers.running(
        Handler, token=TOKEN, refuses="", files=Written(folder), seen=[]
    ) as it:
        print(it.url, flush=True)
        threading.Event().wait()


class Written(dict):
    """Pushed files by name, each of which is also written to a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __setitem__(self, name, content):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        super().__setitem__(name, content)


if __name__ == "__main__":
    serve(sys.argv[1])
