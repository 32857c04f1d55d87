"""A server may answer anything: each answer ends in one line or is repaired, none is trained on."""

import gzip
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
import serving
import sums
import tiny

from sdjax import config
from sdjax.errors import Stopped, UserError
from sdjax.jobs import train_job
from sdjax.rollout.interface import SamplingRequest, sample
from sdjax.rollout.server import client, http

pytestmark = pytest.mark.usefixtures("compiled_once")

LONGEST = 6
TOKENS = [[7, 8, 9, 10, 11, 12], [7, 8, 0]]  # one at the limit, one with a stop token
SAMPLING = config.Sampling(temperature=0.7, max_completion_tokens=LONGEST)


def vllm_answer():
    choices = []
    for tokens in TOKENS:
        logprobs = {
            "tokens": [f"token_id:{t}" for t in tokens],
            "token_logprobs": [-0.5] * len(tokens),
        }
        finish = "stop" if tokens[-1] == 0 else "length"
        choices.append({"token_ids": tokens, "logprobs": logprobs, "finish_reason": finish})
    return {"choices": choices}


def sglang_answer():
    out = []
    for tokens in TOKENS:
        meta = {
            "finish_reason": {"type": "stop" if tokens[-1] == 0 else "length"},
            "output_token_logprobs": [[-0.5, t, None] for t in tokens],
        }
        out.append({"output_ids": tokens, "meta_info": meta})
    return out


def http_bytes(body, status="200 OK", headers="", length=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(data) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + data


@contextmanager
def raw_server(*modes, rest=None, port=0):
    """Yields the address of a server that sends bytes: those of `modes` first, then `rest`.

    A mode is bytes, or a function that takes the connection.
    """
    listener = socket.create_server(("127.0.0.1", port))
    left, seen = list(modes), []

    def answer(connection):
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (part := connection.recv(1 << 16)):
                    return
                request += part
            seen.append(request.split(b"\r\n")[0].decode())
            mode = left.pop(0) if left else rest
            try:
                mode(connection) if callable(mode) else connection.sendall(mode)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def drip(data, every=0.05):
    def send(connection):
        for byte in data * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(every)

    return send


def slow(data):
    def send(connection):
        time.sleep(0.3)
        connection.sendall(data)

    return send


def hang(connection):
    time.sleep(30)


DRIP = [
    lambda c: (c.sendall(http_bytes(b"{}", length=10**6)[:-2]), drip(b" ")(c)),
    drip(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
]


def draw(url, engine="vllm", between=lambda: None, **changes):
    cfg = config.Server(
        url=url, engine=engine, model="tiny", **{"retries": 1, "timeout_s": 0.7} | changes
    )
    made = client.make(
        cfg,
        stop_ids=serving.STOPS,
        vocab_size=tiny.VOCABULARY,
        write=lambda params: "unused",
        between=between,
    )
    request = SamplingRequest(
        prompts=[np.arange(5, 12)], group_size=2, sampling=SAMPLING, key=jax.random.key(0)
    )
    return sample(made, None, request)


def right(drawn):
    return [d.tokens.tolist() for d in drawn[0]] == TOKENS


def with_retry_after(status):
    return http_bytes({"message": "later"}, status, "Retry-After: 7200\r\n")


GOOD = http_bytes(vllm_answer())
NESTED = b"[" * 200_000
TRANSPORT = {
    "no answer": (hang, "no answer in 0.7 s"),
    "a body that drips": (DRIP[0], "no answer in 0.7 s"),
    "headers that drip": (DRIP[1], "no answer in 0.7 s"),
    "closed before an answer": (b"", "the connection broke before an answer"),
    "closed in the headers": (GOOD[:20], "the connection broke"),
    "closed in the body": (GOOD[:-20], "ended early"),
    "a longer length than the body": (http_bytes(b"{}", length=99), "ended early"),
    "a shorter length than the body": (
        http_bytes(vllm_answer(), length=9),
        "the answer is not HTTP",
    ),
    "cut in a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}",
        "ended early",
    ),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "the answer is not HTTP"),
    "damaged gzip": (
        http_bytes(
            gzip.compress(b"{}" * 99)[:-9] + b"x" * 9, "200 OK", "Content-Encoding: gzip\r\n"
        ),
        "damaged",
    ),
    "an empty body": (http_bytes(b""), "an empty answer"),
    "a page": (http_bytes(b"<html>hello"), "answered no JSON but '<html>hello'"),
    "half of the JSON": (http_bytes(json.dumps(vllm_answer()).encode()[:99]), "answered no JSON"),
    "bytes that are no text": (http_bytes(b"\xff\xfe\x00"), "answered no JSON"),
    "nested lists": (http_bytes(NESTED), "answered no JSON"),
    "nested lists in an error": (http_bytes(NESTED, "400 Bad"), "HTTP 400: [[["),
    "a redirection": (http_bytes(b"", "302 Found", "Location: http://a.b/\r\n"), "HTTP 302"),
    "400": (http_bytes({"message": "too\nlong"}, "400 Bad"), "HTTP 400: too long"),
    "401": (http_bytes({"error": "Unauthorized"}, "401 No"), "HTTP 401: Unauthorized"),
    "403": (http_bytes(b"", "403 No"), "HTTP 403"),
    "404": (http_bytes({"detail": "Not Found"}, "404 No"), "HTTP 404: Not Found"),
    "413": (http_bytes(b"x" * 9999, "413 Large"), "HTTP 413: xxx"),
    "422": (http_bytes({"detail": [{"loc": ["n"]}]}, "422 No"), "HTTP 422: [{'loc': ['n']}]"),
    "429 for ever": (with_retry_after("429 Busy"), "HTTP 429: later"),
    "500 for ever": (http_bytes({"error": {"message": "dead"}}, "500 No"), "HTTP 500: dead"),
    "502 for ever": (http_bytes(b"bad gateway", "502 No"), "HTTP 502: bad gateway"),
    "503 for ever": (with_retry_after("503 Busy"), "HTTP 503: later"),
    "504 for ever": (http_bytes(b"", "504 No"), "HTTP 504"),
    "an error with code 200": (http_bytes({"error": "no"}), "choices is missing"),
}
PASSING = {
    "429 once": with_retry_after("429 Busy"),
    "500 once": http_bytes(b"", "500 No"),
    "502 once": http_bytes(b"", "502 No"),
    "503 once": http_bytes(b"", "503 No"),
    "504 once": http_bytes(b"", "504 No"),
    "closed once": b"",
    "cut once": GOOD[:-20],
    "slow": slow(GOOD),
}


def one_line(error, url):
    text = str(error.value)
    assert "\n" not in text and url in text and len(text) < 500, text
    return text


@pytest.mark.parametrize("mode", TRANSPORT)
def test_a_broken_transport_is_one_line_that_says_what_is_wrong(mode):
    sent, says = TRANSPORT[mode]
    with raw_server(rest=sent) as (url, _), pytest.raises(UserError) as error:
        draw(url)
    assert says in one_line(error, url)


@pytest.mark.parametrize("mode", PASSING)
def test_a_passing_fault_is_repaired(mode):
    with raw_server(PASSING[mode], rest=GOOD) as (url, _):
        assert right(draw(url))


def test_an_endless_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 1000)
    with raw_server(rest=http_bytes(b" " * 9999)) as (url, _), pytest.raises(UserError) as error:
        draw(url)
    assert "an answer of more than" in one_line(error, url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        ("http://no-such-host.invalid:8000", "no such host"),
    ],
)
def test_an_address_without_a_server_is_one_line_in_plain_words(url, says):
    with pytest.raises(UserError) as error:
        draw(url)
    text = one_line(error, url)
    assert says in text and "not reached in 2 tries" in text and "Error" not in text


# What is wrong with the last completion's tokens, log-probabilities and reason of its end.
WRONG = {
    "a fraction": (lambda c: c["ids"].__setitem__(0, 5.7), "is 5.7"),
    "a whole fraction": (lambda c: c["ids"].__setitem__(0, 5.0), "is 5.0"),
    "text": (lambda c: c["ids"].__setitem__(0, "12"), "is '12'"),
    "true": (lambda c: c["ids"].__setitem__(0, True), "is True"),
    "null": (lambda c: c["ids"].__setitem__(0, None), "is None"),
    "a list": (lambda c: c["ids"].__setitem__(0, [5]), "is [5]"),
    "negative": (lambda c: c["ids"].__setitem__(0, -1), "is -1"),
    "2^40": (lambda c: c["ids"].__setitem__(0, 2**40), f"is {2**40}"),
    "over the vocabulary": (lambda c: c["ids"].__setitem__(0, 264), "token 264"),
    "none": (lambda c: (c["ids"].clear(), c["lps"].clear()), "after 0 tokens"),
    "over the limit": (
        lambda c: (c["ids"].extend([7] * 30), c["lps"].extend([-1.0] * 30), c.update(end="length")),
        "goes on after the stop token 0|the limit is 6",
    ),
    "after a stop token": (
        lambda c: (c["ids"].append(7), c["lps"].append(-1.0), c.update(end="length")),
        "goes on after the stop token 0",
    ),
    "positive": (lambda c: c["lps"].__setitem__(0, 5.0), "is 5.0"),
    "vLLM's zero": (lambda c: c["lps"].__setitem__(0, -9999.0), "is -9999.0"),
    "not a number": (lambda c: c["lps"].__setitem__(0, float("nan")), "is nan"),
    "infinite": (lambda c: c["lps"].__setitem__(0, float("-inf")), "is -inf"),
    "null log-probability": (lambda c: c["lps"].__setitem__(0, None), "is None"),
    "text log-probability": (lambda c: c["lps"].__setitem__(0, "-1"), "is '-1'"),
    "aborted": (lambda c: c.update(end="abort"), "ended a completion with 'abort'"),
    "no reason": (lambda c: c.update(end=None), "ended a completion with 'None'"),
    "a number as reason": (lambda c: c.update(end=3), "is 3"),
    "stopped without a stop token": (
        lambda c: (c["ids"].pop(), c["lps"].pop()),
        "stopped at token 8, none of the stop tokens",
    ),
    "cut": (
        lambda c: (c["ids"].pop(), c["lps"].pop(), c.update(end="length")),
        "cut a completion at 2 of 6 tokens",
    ),
}


def wrong_answer(engine, change):
    """Returns an answer of which the last completion is changed."""
    one = {"ids": list(TOKENS[1]), "lps": [-0.5] * 3, "end": "stop"}
    change(one)
    if engine == "vllm":
        answer = vllm_answer()
        answer["choices"][1] = {
            "token_ids": one["ids"],
            "logprobs": {"token_logprobs": one["lps"]},
            "finish_reason": one["end"],
        }
        return answer
    answer = sglang_answer()
    answer[1]["meta_info"] = {
        "finish_reason": None if one["end"] is None else {"type": one["end"]},
        "output_token_logprobs": [
            [lp, i, None] for lp, i in zip(one["lps"], one["ids"], strict=True)
        ],
    }
    return answer


@pytest.mark.parametrize("mode", WRONG)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_wrong_completion_is_one_line(mode, engine):
    change, says = WRONG[mode]
    with (
        raw_server(rest=http_bytes(wrong_answer(engine, change))) as (url, _),
        pytest.raises(UserError) as error,
    ):
        draw(url, engine)
    assert any(s in one_line(error, url) for s in says.split("|")), str(error.value)


def changed(**fields):
    answer = vllm_answer()
    answer["choices"][1] |= fields
    return answer


SHAPES = {
    "choices null": {"choices": None},
    "choices a list of lists": {"choices": [[1, 2]]},
    "choices text": {"choices": "two"},
    "choices a dict": {"choices": {"0": {}}},
    "no choices": {"text": "hello"},
    "too few": {"choices": vllm_answer()["choices"][:1]},
    "too many": {"choices": vllm_answer()["choices"] * 2},
    "a list": [1, 2],
    "a number": 3,
    "null": None,
    "ids nested": changed(token_ids=[[7, 8, 0]]),
    "ids a number": changed(token_ids=7),
    "ids text": changed(token_ids="7 8 0"),
    "no log-probabilities": changed(logprobs=None),
    "log-probabilities a list": changed(logprobs=[-1.0]),
    "one log-probability missing": changed(logprobs={"token_logprobs": [-1.0, -1.0]}),
    "one log-probability more": changed(logprobs={"token_logprobs": [-1.0] * 4}),
    "token names that are no ids": changed(
        token_ids=None, logprobs={"tokens": ["token_id:abc"], "token_logprobs": [-1.0]}
    ),
    "token names that are text": changed(
        token_ids=None, logprobs={"tokens": ["a", "b", "c"], "token_logprobs": [-1.0] * 3}
    ),
    "no ids at all": changed(token_ids=None, logprobs={"token_logprobs": [-1.0] * 3}),
}


@pytest.mark.parametrize("mode", SHAPES)
def test_a_wrong_shape_is_one_line(mode):
    with raw_server(rest=http_bytes(SHAPES[mode])) as (url, _), pytest.raises(UserError) as error:
        draw(url)
    one_line(error, url)


SGLANG_SHAPES = {
    "a dict": {"text": "hello"},
    "null": None,
    "too few": sglang_answer()[:1],
    "no meta_info": [{"output_ids": t} for t in TOKENS],
    "pairs": [{"meta_info": {"finish_reason": None, "output_token_logprobs": [[-1.0, 7]]}}] * 2,
}


@pytest.mark.parametrize("mode", SGLANG_SHAPES)
def test_a_wrong_shape_of_sglang_is_one_line(mode):
    answer = http_bytes(SGLANG_SHAPES[mode])
    with raw_server(rest=answer) as (url, _), pytest.raises(UserError) as error:
        draw(url, "sglang")
    one_line(error, url)


def test_right_answers_of_both_servers_are_read():
    for engine, answer in (("vllm", vllm_answer()), ("sglang", sglang_answer())):
        with raw_server(rest=http_bytes(answer)) as (url, _):
            drawn = draw(url, engine)
        assert right(drawn) and [d.finish for d in drawn[0]] == ["length", "stop"]


@pytest.mark.parametrize("mode", ["hang", "body", "headers", "busy", "gone"])
def test_a_signal_does_not_wait_for_the_server(mode):
    due = time.monotonic() + 0.5

    def between():
        if time.monotonic() > due:
            raise Stopped

    modes = {"hang": hang, "body": DRIP[0], "headers": DRIP[1]}
    sent = modes.get(mode, with_retry_after("503 Busy"))
    with raw_server(rest=sent) as (url, _), pytest.raises(Stopped):
        url = "http://127.0.0.1:1" if mode == "gone" else url
        draw(url, between=between, timeout_s=60, retries=9)
    assert time.monotonic() - due < 2


def test_an_error_does_not_wait_for_other_requests():
    """Of two prompts one is refused at once, and the other one hangs."""
    bad = http_bytes({"message": "too long"}, "400 Bad")
    start = time.monotonic()
    with raw_server(hang, rest=bad) as (url, _):
        made = client.make(
            config.Server(url=url, model="tiny", retries=0, timeout_s=60),
            stop_ids=serving.STOPS,
            vocab_size=tiny.VOCABULARY,
            write=lambda params: "unused",
        )
        request = SamplingRequest(
            prompts=[np.arange(5)] * 2, group_size=2, sampling=SAMPLING, key=jax.random.key(0)
        )
        with pytest.raises(UserError, match="HTTP 400"):
            sample(made, None, request)
    assert time.monotonic() - start < 2


def training_sampler(url, retries=4):
    """Returns a sampler whose server has loaded the weights once, and a request for it."""
    cfg = config.Server(url=url, model="tiny", retries=retries, timeout_s=5, reload="folder")
    made = client.make(
        cfg,
        stop_ids=serving.STOPS,
        vocab_size=tiny.VOCABULARY,
        write=lambda params: "/weights",
    )
    made.weights({})
    request = SamplingRequest(
        prompts=[np.arange(5)] * 3, group_size=2, sampling=SAMPLING, key=jax.random.key(0)
    )
    return made, request


def paths(lines):
    return [line.split()[1] for line in lines]


LOADED = http_bytes(b"")
LOADS, DRAWS = ["/collective_rpc", "/reset_prefix_cache"], ["/v1/completions"] * 3


@pytest.mark.heavy
@pytest.mark.parametrize(("retries", "away_s"), [(4, 0.0), (0, 1.2)], ids=["soon", "later"])
def test_a_server_that_restarts_within_a_step_gets_the_weights_before_it_draws(retries, away_s):
    with raw_server(rest=LOADED) as (url, first):
        made, request = training_sampler(url, retries)
    assert paths(first) == LOADS
    second, drawn = [], threading.Event()

    def restart():
        refused.wait()
        time.sleep(away_s)
        with raw_server(LOADED, LOADED, rest=GOOD, port=int(url.rsplit(":", 1)[1])) as (_, seen):
            drawn.wait(10)
            second.extend(seen)

    refused = threading.Event()
    made = replace(made, between=refused.set)  # called once requests are open
    thread = threading.Thread(target=restart)
    thread.start()
    groups = sample(made, None, request)
    drawn.set()
    thread.join()
    assert paths(second) == [*LOADS, *DRAWS]
    assert all(right([group]) for group in groups)


def test_a_server_that_was_silent_gets_the_weights_before_it_draws(monkeypatch):
    with raw_server(LOADED, LOADED, LOADED, LOADED, rest=GOOD) as (url, seen):
        made, request = training_sampler(url)
        monkeypatch.setattr(client, "RESTART_S", 0.0)
        assert all(right([group]) for group in sample(made, None, request))
    assert paths(seen) == [*LOADS, *LOADS, *DRAWS]


@pytest.mark.heavy
@pytest.mark.parametrize("value", [-9.0, 0.0], ids=["low", "zero"])
def test_log_probabilities_of_other_weights_end_the_run_before_a_checkpoint(model, tmp_path, value):
    changes = {"eval": {"every": 0}, "checkpoint": {"every": 1}}
    with serving.serving(serving.Model(model)) as server:

        def spoil(path, answer):
            for c in answer.get("choices", ()):
                c["logprobs"]["token_logprobs"] = [value] * len(c["token_ids"])
            return answer

        server.spoil = spoil
        served = config.Server(url=server.url, reload="folder")
        rollout = {"server": served, "temperature": 1.0}
        with pytest.raises(UserError) as error:
            train_job.run(sums.job(model, tmp_path / "run", rollout=rollout, **changes))
    assert "nats per token" in one_line(error, server.url)
    assert "there is no checkpoint yet" in str(error.value)
    assert [line["step"] for line in runs.lines(tmp_path / "run" / "metrics.jsonl")] == [0]
