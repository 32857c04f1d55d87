"""Runs one program on its tests. This file's text runs only inside the sandbox.

Standard input holds {"code", "tests": [{"kind", "input", "name"}], "limit_s", "total_s",
"memory_mb", "output_bytes", "uid", "reference", "remote"}. Standard output gets an empty line once
the input is read. Then it gets one JSON object per test: {"stdout", "stderr", "result": JSON text,
"repr", "str", "error": [text, frames...]} or
{"timeout": true}, {"died": signal} or {"flooded": true}.

The sandbox never holds the expected outputs of the kinds "stdin" and "functional". The caller
compares, so that a program can neither find nor forge them. Assertions (kind "code") hold them, so
they run in a process that the program cannot read, and call the program in its own process; see
sandbox_remote, whose text is "remote". With "reference" they run in the program's process, as in
the papers' code.
"""

import builtins
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time

from sdjax.graders.code.sandbox_remote import FILE, described, open_channel, run_test

PROCESSES = 16
FILE_BYTES = 2**24

ALLOWED_IMPORTS = set(
    "math cmath itertools functools operator statistics random collections heapq bisect array "
    "string re typing json io fractions decimal dataclasses datetime time sys sortedcontainers "
    "numpy".split()
)


def confine(job):
    """Limits processes, memory, file size and core dumps for good."""
    if job["uid"]:
        os.setgroups([])
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    memory = job["memory_mb"] * 2**20
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    # Other processes of this user cannot read this process and its forks, or their open files.
    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        os._exit(1)


def restricted_builtins():
    """Returns the builtins of the reference: no exception classes, no files, few imports."""

    def limited_import(name, *args, **kwargs):
        if name.split(".")[0] not in ALLOWED_IMPORTS:
            raise ImportError(f"Import of module {name!r} is not allowed")
        return builtins.__import__(name, *args, **kwargs)

    names = {
        name: value
        for name, value in vars(builtins).items()
        if not (isinstance(value, type) and issubclass(value, BaseException))
    }
    names.update({"open": None, "exec": None, "eval": None, "compile": None})
    names["__import__"] = limited_import
    names["debug_print"] = lambda *args, **kwargs: print(*args, **kwargs, file=sys.stderr)
    return names


def arguments(text, reference):
    """Returns the arguments in a functional test's input: one JSON value per line."""
    if reference:
        return [json.loads(piece) for piece in text.split()]
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return [json.loads(piece) for piece in text.split()]


def target(names, name, reference):
    """Returns the function that a functional test calls."""
    if name in names:
        return names[name]
    functions = [v for v in names.values() if type(v) is type(target)]
    if reference:
        if functions:
            return functions[0]
        raise KeyError(name)
    solution = names.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    if len(functions) == 1:
        return functions[0]
    raise NameError(f"name {name!r} is not defined")


def execute(job, test):
    """Runs the program on one test; returns the part of the report about its result."""
    reference, kind = job["reference"], test["kind"]
    names = {"__name__": "__main__" if kind == "stdin" else "solution"}
    source = job["code"]
    if reference:
        names["__builtins__"] = restricted_builtins()
        # The reference adds a first line, which its line numbers count.
        source = "\n" + source if kind == "stdin" else source
    try:
        exec(compile(source, FILE, "exec"), names)
    except SystemExit as stop:
        if reference or kind != "stdin" or stop.code not in (None, 0):
            raise
    if kind == "stdin":
        return {}
    if kind == "code":  # only with `reference`
        exec(compile(test["input"], "test", "exec"), names)
        return {}
    value = target(names, test["name"], reference)(*arguments(test["input"], reference))
    try:
        return {"result": json.dumps(value), "repr": repr(value), "str": str(value)}
    except TypeError:
        return {"error": [f"Non-serializable result type: {type(value).__name__}"]}


def child(job, test, channels):
    """Runs one test in the current process, which must end afterwards."""
    out, err, result = channels
    limit_seconds(job)
    stdin = os.memfd_create("stdin")
    os.truncate(stdin, 0)
    if test["kind"] == "stdin":
        data = test["input"].encode("utf-8", "surrogatepass")
        while data:
            data = data[os.write(stdin, data) :]
        os.lseek(stdin, 0, os.SEEK_SET)
    for source, destination in ((stdin, 0), (out, 1), (err, 2)):
        os.dup2(source, destination)
    os.closerange(3, result)
    try:
        report = execute(job, test)
    except BaseException as error:
        report = {"error": described(error)}
    try:
        sys.stdout.flush()
    except BaseException:
        pass
    with os.fdopen(result, "w") as stream:
        json.dump(report, stream)


def limit_seconds(job):
    """Makes this process the leader of a group, and limits its time on the processor."""
    os.setsid()
    seconds = int(job["limit_s"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def program_child(job, channels, connection):
    """Replaces this process by one that runs the program and answers its test.

    The new process holds nothing of the job: neither the tests nor the channel of reports.
    """
    out, err, _ = channels
    limit_seconds(job)
    for source, destination in ((os.open(os.devnull, os.O_RDWR), 0), (out, 1), (err, 2)):
        os.dup2(source, destination)
    os.dup2(connection, 3)
    os.closerange(4, 256)
    serve = "serve_program(*open_channel(3))"
    os.execv(sys.executable, [sys.executable, "-I", "-c", f"{job['remote']}\n{serve}\n"])


def test_child(job, test, channels, connection):
    """Runs the assertions of a test in the current process, which must end afterwards."""
    limit_seconds(job)
    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    report = run_test(*open_channel(connection), job["code"], test["input"])
    with os.fdopen(channels[2], "w") as stream:
        json.dump(report, stream)


def collect(pipes, deadline, limit):
    """Reads a child's pipes until they close, it floods them, or its time is over."""
    data = {name: bytearray() for name in pipes}
    verdict = {}
    with selectors.DefaultSelector() as selector:
        for name, fd in pipes.items():
            selector.register(fd, selectors.EVENT_READ, name)
        # The result pipe closes when the child ends, because no grandchild should hold it.
        while "result" in {key.data for key in selector.get_map().values()}:
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                verdict = {"timeout": True}
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                data[key.data] += chunk
                if not chunk:
                    selector.unregister(key.fd)
            if max(map(len, data.values())) > limit:
                verdict = {"flooded": True}
                break
        if not verdict:
            drain(selector, data, limit)
    return data, verdict


def drain(selector, data, limit):
    """Reads the rest of the pipes of a child that has ended."""
    while selector.get_map():
        ready = selector.select(0)
        if not ready:
            return
        for key, _ in ready:
            chunk = os.read(key.fd, 65536)
            data[key.data] += chunk[: limit - len(data[key.data])]
            if not chunk:
                selector.unregister(key.fd)


def run(job, test, deadline):
    """Returns the report on one test."""
    ends = {name: os.pipe() for name in ("stdout", "stderr", "result")}
    for _, write in ends.values():
        os.set_inheritable(write, True)
    channels = [write for _, write in ends.values()]
    if test["kind"] == "code" and not job["reference"]:
        ours, theirs = socket.socketpair()
        parts = [
            lambda: program_child(job, channels, theirs.detach()),
            lambda: test_child(job, test, channels, ours.detach()),
        ]
    else:
        parts = [lambda: child(job, test, channels)]
    reads = [read for read, _ in ends.values()]
    pids = [start(part, reads) for part in parts[:1]]
    if len(parts) > 1:
        theirs.close()  # now only the program has it, so its end is seen
        pids += [start(part, reads) for part in parts[1:]]
        ours.close()
    for write in channels:
        os.close(write)
    pipes = {name: read for name, (read, _) in ends.items()}
    data, verdict = collect(pipes, deadline, job["output_bytes"])
    for pid in pids:
        for end in (os.killpg, os.kill):
            try:
                end(pid, signal.SIGKILL)
            except OSError:
                pass
    *_, status = [os.waitpid(pid, 0)[1] for pid in pids]
    for fd in pipes.values():
        os.close(fd)
    if not verdict:
        verdict = finished(bytes(data["result"]), status)
    texts = {k: data[k].decode("utf-8", "replace") for k in ("stdout", "stderr")}
    return {**texts, **verdict}


def start(part, unused):
    """Runs a function in a new process, which closes `unused` and ends after it; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            for fd in unused:
                os.close(fd)
            part()
        finally:
            os._exit(0)
    return pid


def finished(result, status):
    """Returns the report that a child wrote, or how it died."""
    try:
        report = json.loads(result)
    except ValueError:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return {"timeout": True} if number == signal.SIGXCPU else {"died": number}
    return report if isinstance(report, dict) else {"died": 0}


def main():
    """Runs every test within the total time of the program."""
    job = json.loads(sys.stdin.buffer.read())
    channel = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    confine(job)
    os.write(channel, b"\n")
    end = time.monotonic() + job["total_s"]
    for test in job["tests"]:
        now = time.monotonic()
        limit = min(job["limit_s"], end - now)
        report = run(job, test, now + limit) if limit > 0 else {"timeout": True}
        line = (json.dumps(report) + "\n").encode()
        while line:
            line = line[os.write(channel, line) :]


if __name__ == "__main__":
    main()
