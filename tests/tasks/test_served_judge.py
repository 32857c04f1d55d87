"""The reward `judge` against a real HTTP server, which may be wrong, slow, busy or gone."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sdjax import config, tasks
from sdjax.errors import UserError
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.tasks.questions import Questions
from sdjax.tasks.served_judge import score, written

KEY = "key-of-the-judge-0123456789"


class Handler(BaseHTTPRequestHandler):
    """Answers with what `server.says` returns for a prompt, after `server.faults`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.reply(404, b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "slow":  # A byte now and then does not extend the deadline.
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
            self.close_connection = True
            return
        if fault is not None:
            return self.reply(*fault)
        content = self.server.says(body["messages"][0]["content"])
        answer = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        self.reply(200, json.dumps(answer).encode())

    def reply(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    served.seen, served.faults = [], []
    served.says = lambda prompt: f"Short.\nScore: {len(prompt.split())}"
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def judged(server, tmp_path):
    """Returns a function that grades texts by the judge of a config."""
    rows = [{"prompt": "Say {hint}.", "hint": "hello"}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def grades(texts, on_reward_error="stop", **fields):
        judge = {
            "url": f"http://127.0.0.1:{server.server_port}/v1",
            "model": "m",
            "prompt": "{question} {completion}",
            "retries": 0,
        }
        task = Questions(
            train=str(tmp_path / "r.jsonl"),
            held_out=0,
            reward="judge",
            on_reward_error=on_reward_error,
            judge=config.Judge(**judge | fields),
        )
        made = tasks.load(task, config.Data())
        return made.grade_many(texts, [made.train[0]] * len(texts), [False] * len(texts))

    return grades


def fault(judged, **fields):
    """Returns the one line with which a run ends."""
    with pytest.raises(UserError) as error:
        judged(["one"], **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_judge_scores_each_completion_of_a_batch(judged, server):
    grades = judged(["one", "one two", "a b c d e f"])
    assert [g.reward for g in grades] == pytest.approx([0.3, 0.4, 0.8])
    assert [g.correct for g in grades] == [False, False, True]
    assert grades[0].details["judge"] == "Short.\nScore: 3"
    (path, body, key), *_ = sorted(server.seen, key=lambda seen: len(str(seen[1])))
    assert path == "/v1/chat/completions" and key is None
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say {hint}. one"}],
        "temperature": 0.0,
        "max_tokens": 1024,
    }


def test_fields_that_a_server_refuses_can_be_left_out(judged, server):
    judged(["one"], temperature=None, max_tokens=None)
    assert server.seen[0][1].keys() == {"model", "messages"}


def test_the_key_is_sent_and_never_printed(judged, server, monkeypatch):
    monkeypatch.setenv("JUDGE", KEY)
    judged(["one"], key_variable="JUDGE")
    assert server.seen[0][2] == f"Bearer {KEY}"
    server.faults = [(401, json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode())]
    said = fault(judged, key_variable="JUDGE")
    assert "HTTP 401: wrong key ***" in said and KEY not in said
    monkeypatch.delenv("JUDGE")
    assert "task.judge.key_variable is 'JUDGE': no such variable" in fault(
        judged, key_variable="JUDGE"
    )


def test_a_busy_server_is_asked_again(judged, server):
    server.faults = [(503, b"loading"), (429, b"wait")]
    assert judged(["one"], retries=2)[0].reward == pytest.approx(0.3)
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("slow", "no answer in 0.5 s: look at the server, or raise task.judge.timeout_s"),
        ((500, b"out of memory"), "HTTP 500: out of memory: correct the section task.judge"),
        ((404, b'{"message": "no model m"}'), "HTTP 404: no model m: correct the section"),
        ((200, b"<html>"), "answered no JSON but '<html>': correct task.judge.url"),
        ((200, b'{"choices": []}'), "no choices"),
        ((200, b'{"choices": [{"message": {"content": 3}}]}'), "choices.0.message.content is 3"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "no 'Score: N' with N from 0"),
    ],
)
def test_a_failure_is_one_line_with_the_row_or_scores_0(judged, server, given, says):
    server.faults = [given]
    said = fault(judged, timeout_s=0.5)
    assert said.startswith("judge, row 1 of task.train: ") and says in said
    server.faults = [given]
    bad, good = judged(["one", "one"], on_reward_error="zero", timeout_s=0.5, concurrency=1)
    assert (bad.reward, bad.correct, good.reward) == (0.0, False, pytest.approx(0.3))
    assert says in bad.details["failed"]["judge"]


def test_a_judge_that_is_gone_ends_the_run_before_it_begins(judged):
    said = fault(judged, url="http://127.0.0.1:9/v1", on_reward_error="zero")
    assert "http://127.0.0.1:9/v1/models: not reached in 1 try (connection refused)" in said
    assert "correct task.judge.url" in said


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Score: 7", 7),
        ("Good.\n**Score:** 7.5", 7.5),
        ("score = 0", 0),
        ("Score: 7/10", 7),
        ("Score: 3\nNo, better:\nScore: 4.", 4),
        ("<think>Score: 9</think>Score: 2", 2),
        ("Score: 7/5", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: nan", None),
        ("My score is high: 7", None),
        ("Underscore: 7", None),
        ("7", None),
        ("", None),
    ],
)
def test_only_the_last_stated_score_in_range_counts(answer, found):
    assert score(answer, 10.0) == found


def test_what_is_filled_in_is_not_filled_in_again():
    attempt = Attempt("{answer}", "42", columns={"hint": 3})
    assert written("{completion} {hint} {other} {answer}", attempt) == "{answer} 3 {other} 42"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"url": "localhost:8000"}, "task.judge.url is 'localhost:8000': must be such as http://"),
        ({"prompt": "Score it."}, "needs {completion}"),
        ({"top": 0.0}, "task.judge.top is 0.0: must be positive"),
        ({"retries": -1}, "task.judge.retries is -1"),
    ],
)
def test_a_judge_that_cannot_work_is_refused(fields, says):
    with pytest.raises(UserError, match=r"task\.judge") as error:
        config.Judge(**fields)
    assert says in str(error.value)


def test_a_judge_that_no_reward_uses_is_refused():
    with pytest.raises(UserError, match=r"task.judge.url .* needs task.reward judge"):
        Questions(train="r", judge=config.Judge(url="http://h/v1", model="m"))
