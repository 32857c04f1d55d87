"""A small stand-in for a W&B server, which takes a run until it is cut off."""

import gzip

import http_servers

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


class Handler(http_servers.Handler):
    """Answers every query with all that it knows, and keeps what the run streams."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        if self.server.cut_off:
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.streamed += body.decode() if "file_stream" in self.path else ""
        self.answer(200, {"data": ANSWERS, "exitcode": None, "limits": {}})

    do_GET = do_PUT = do_POST


def serving():
    """Returns a context of a running server; it breaks every connection once `cut_off` is True."""
    return http_servers.running(Handler, cut_off=False, streamed="")
