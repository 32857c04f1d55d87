"""Errors of connections are said in plain words, whatever library raised them."""

import gzip
import http.client
import http.server
import re
import socket
import threading
import urllib.request

import pytest
from huggingface_hub.utils import get_session

from sdjax.data import sources
from sdjax.errors import UserError
from sdjax.io import network

PYTHON = re.compile(r"\w+(Error|Exception|Disconnected)\b|Errno|\)\)|object at|<|'\)")
ROW = b'{"a": 1}\n' * 40


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers with the fault that the path names."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        fault = self.path.strip("/").partition(".")[0]
        if fault == "hangup":
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "noise":
            return self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
        if fault.isdecimal():
            return self.send_error(int(fault))
        self.send_response(200)
        if fault == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(ROW)))
        self.end_headers()
        body = gzip.compress(ROW)[:5] if fault == "packed" else ROW
        self.wfile.write(body[: len(ROW) // 2] if fault == "cut" else body.ljust(len(ROW), b"x"))


@pytest.fixture(scope="module")
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    thread = threading.Thread(target=served.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def by_urllib(url):
    with urllib.request.urlopen(url, timeout=5) as reply:
        if reply.read(len(ROW)) and reply.length:
            raise http.client.IncompleteRead(b"", reply.length)


def by_requests(url):
    import requests  # two seconds, which only one of pytest's processes shall spend

    requests.get(url, timeout=5).raise_for_status()


def by_the_hub(url):
    get_session().get(url, timeout=5).raise_for_status()


FAULTS = {
    "hangup": network.BROKEN,
    "noise": "the answer is not HTTP",
    "404": "HTTP 404 Not Found",
    "503": "HTTP 503 Service Unavailable",
    "cut": network.BROKEN,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_data_file_on_the_web_that_cannot_be_had_is_said_in_plain_words(
    server, fault, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"{server}/{fault}.jsonl"
    with pytest.raises(UserError) as caught:
        sources.files(url)
    assert str(caught.value) == f"{url}: cannot be fetched ({FAULTS[fault]})"
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("get", [by_urllib, by_requests, by_the_hub])
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("SERVER/hangup", network.BROKEN),
        ("SERVER/404", "HTTP 404 Not Found"),
        ("SERVER/cut", network.BROKEN),
        ("http://127.0.0.1:9/x", "connection refused"),
        ("http://no-such-host.invalid/x", "no such host, or no network"),
    ],
)
def test_three_libraries_are_said_in_the_same_words(server, get, address, says):
    with pytest.raises(Exception) as caught:
        get(address.replace("SERVER", server))
    assert network.why(caught.value) == says


@pytest.mark.parametrize("get", [by_requests, by_the_hub])
def test_a_damaged_compression_is_said_in_plain_words(server, get):
    with pytest.raises(Exception) as caught:
        get(f"{server}/packed")
    assert network.why(caught.value) == network.DAMAGED


class ConnectionError(Exception):  # has the name of that of requests
    pass


class MaxRetryError(Exception):
    def __init__(self, message, reason):
        super().__init__(message)
        self.reason = reason


def nested(inner):
    """Returns an error as requests and urllib3 nest it, in arguments alone."""
    retry = MaxRetryError(f"HTTPSConnectionPool: {inner!r}", inner)
    return ConnectionError(retry)


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        (http.client.RemoteDisconnected("Remote end closed"), network.BROKEN),
        (ConnectionResetError(104, "Connection reset by peer"), network.BROKEN),
        (TimeoutError("timed out"), network.LATE),
        (OSError(101, "Network is unreachable"), "network is unreachable"),
        (ValueError("odd"), "no connection"),
    ],
)
def test_the_innermost_cause_is_said_of_nested_errors(inner, says):
    assert network.why(nested(inner)) == says


def test_an_unknown_error_keeps_its_first_line_without_addresses_of_objects():
    error = RuntimeError("<a.B object at 0x7f01>: [Errno -2] no bucket\nTraceback")
    assert network.why(error) == "no bucket" and not PYTHON.search(network.why(error))
    assert network.why(KeyError()) == "KeyError"
