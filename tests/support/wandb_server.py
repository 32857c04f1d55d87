"""A small stand-in for a W&B server, which takes a run until it is cut off."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RUN = {
    "id": "B1",
    "name": "r",
    "displayName": "r",
    "config": "{}",
    "project": {"id": "P1", "name": "tests", "entity": {"id": "E1", "name": "me"}},
}
ANSWERS = {
    "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}"},
    "serverInfo": {"features": []},
    "model": {"id": "P1", "bucket": None},
    "upsertBucket": {"bucket": RUN, "inserted": True},
    "createRunFiles": {"runID": "B1", "uploadHeaders": [], "files": []},
}


class Handler(BaseHTTPRequestHandler):
    """Answers every query with all that it knows, and keeps what the run streams."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        if self.server.cut_off:
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.streamed += body.decode() if "file_stream" in self.path else ""
        data = json.dumps({"data": ANSWERS, "exitcode": None, "limits": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST


@contextmanager
def serving():
    """Yields a running server; it breaks every connection once `cut_off` is True."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.cut_off, server.streamed = False, ""
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
