"""Runs one program on its tests. This file's text runs only inside the sandbox.

Standard input holds {"code", "tests": [{"kind", "input", "name"}], "limit_s", "total_s",
"memory_mb", "output_bytes", "uid", "reference"}. Standard output gets one JSON object per test:
{"stdout", "stderr", "result": JSON text, "repr", "str", "error": [text, frames...]} or
{"timeout": true}, {"died": signal} or {"flooded": true}. The sandbox never holds the expected
outputs. The caller compares, so that a program can neither find nor forge them.
"""

import builtins
import json
import os
import resource
import selectors
import signal
import sys
import time
import traceback

FILE = "Solution.py"
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
    if kind == "code":
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
    os.setsid()
    seconds = int(job["limit_s"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
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


def described(error):
    """Returns an exception's message and its last three frames in the program."""
    if isinstance(error, MemoryError):
        # The frames hold what filled the memory, so nothing else can run until they are gone.
        error.__traceback__ = None
        return ["MemoryError: "]
    frames = [
        f"Line {frame.lineno} in {frame.name} ({FILE})"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == FILE
    ]
    return [f"{type(error).__name__}: {error}"[:2000], *frames[-3:]]


def collect(pid, pipes, deadline, limit):
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
    pid = os.fork()
    if pid == 0:
        try:
            for read, _ in ends.values():
                os.close(read)
            child(job, test, [write for _, write in ends.values()])
        finally:
            os._exit(0)
    for _, write in ends.values():
        os.close(write)
    pipes = {name: read for name, (read, _) in ends.items()}
    data, verdict = collect(pid, pipes, deadline, job["output_bytes"])
    for end in (lambda: os.killpg(pid, signal.SIGKILL), lambda: os.kill(pid, signal.SIGKILL)):
        try:
            end()
        except OSError:
            pass
    _, status = os.waitpid(pid, 0)
    for fd in pipes.values():
        os.close(fd)
    if not verdict:
        verdict = finished(bytes(data["result"]), status)
    texts = {k: data[k].decode("utf-8", "replace") for k in ("stdout", "stderr")}
    return {**texts, **verdict}


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
