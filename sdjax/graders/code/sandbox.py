"""Runs a model's programs in bubblewrap, with limits.

A program has no network and sees only its own processes. Its Python installation is read-only. Its
/tmp is empty at the start and is removed afterwards. Time, memory, processes, output and file size
are limited.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sdjax.errors import UserError

INSTALL = "install bubblewrap, for instance with: sudo apt-get install bubblewrap"
# User ids that no account has. Each program gets one, because the process limit counts per user.
_UIDS = itertools.cycle(range(1_000_000_000, 1_000_100_000))
_ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_TMP_BYTES = 2**26
_REPLY_BYTES = 2**28
START_S = 10.0
"""Seconds in which the sandbox must have started."""
SPARE_S = 1.0
"""Seconds after the program's time, in which the runner reports."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """The input of one test: standard input, arguments of a function, or Python asserts."""

    __test__ = False  # pytest must not collect this class

    kind: Literal["stdin", "functional", "code"]
    input: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program. A test may take `test_s` seconds, all tests together `total_s`."""

    test_s: float
    total_s: float
    memory_mb: int = 1024
    output_bytes: int = 2**22


@cache
def require() -> None:
    """Raises UserError if the sandbox does not work on this machine."""
    if shutil.which("bwrap") is None:
        raise UserError(
            f"code: bwrap is not installed, and programs run in no other way; {INSTALL}"
        )
    limits = Limits(test_s=20.0, total_s=20.0)
    reports = run("print(int(input()) + 1)", [Test(kind="stdin", input="1\n")], limits)
    if reports[0].get("stdout") != "2\n":
        raise UserError(
            f"code: bwrap does not work here ({_complaint()}); allow unprivileged user namespaces, "
            "or run as root"
        )


def _complaint() -> str:
    done = subprocess.run(
        [*_command(), sys.executable, "-I", "-c", ""], capture_output=True, text=True, timeout=60
    )
    return done.stderr.strip().partition("\n")[0] or "the program gives no output"


def run(
    code: str, tests: Sequence[Test], limits: Limits, *, reference: bool = False
) -> list[dict[str, Any]]:
    """Returns a report on each test, in the form that sandbox_runner describes.

    `reference` restricts builtins and imports, and splits arguments, as the papers' code does.
    """
    job = {
        "code": code,
        "tests": [asdict(test) for test in tests],
        "limit_s": limits.test_s,
        "total_s": limits.total_s,
        "memory_mb": limits.memory_mb,
        "output_bytes": limits.output_bytes,
        "uid": next(_UIDS) if os.geteuid() == 0 else 0,
        "reference": reference,
        "remote": _text("sandbox_remote.py"),
    }
    reply = _talk(json.dumps(job).encode(), limits.total_s)
    reports = []
    for line in reply.split(b"\n")[1 : len(tests) + 1]:
        with contextlib.suppress(ValueError, RecursionError):
            report = json.loads(line)
            if isinstance(report, dict):
                reports.append(report)
    return reports + [{"died": 0}] * (len(tests) - len(reports))


def _talk(job: bytes, total_s: float) -> bytes:
    """Returns the runner's output until it ends, its time is over, or it writes too much.

    Its first byte says that it has read the job. The time of the program starts there.
    """
    process = subprocess.Popen(
        [*_command(), sys.executable, "-I", "-c", _runner()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    reply = bytearray()
    try:
        # The runner reads all of its input before any program runs.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.close()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + START_S
            while len(reply) < _REPLY_BYTES and selector.select(deadline - time.monotonic()):
                chunk = os.read(process.stdout.fileno(), 2**16)
                if not chunk:
                    break
                if not reply:
                    deadline = time.monotonic() + total_s + SPARE_S
                reply += chunk
        # Usually the runner has ended and bwrap soon ends too. It then reaps its own children.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
    finally:
        # The death of bwrap ends every process in its process namespace.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    return bytes(reply)


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


@cache
def _runner() -> str:
    """Returns the program that runs inside the sandbox, which cannot import this package."""
    remote, runner = _text("sandbox_remote.py"), _text("sandbox_runner.py")
    shared = (
        "import sys, types\n"
        "remote = types.ModuleType('sandbox_remote')\n"
        f"exec({remote!r}, vars(remote))\n"
        "sys.modules['sdjax.graders.code.sandbox_remote'] = remote\n"
    )
    return shared + runner


@cache
def _command() -> tuple[str, ...]:
    """Returns bwrap and its options."""
    command = ["bwrap", "--die-with-parent", "--new-session", "--clearenv", "--unshare-ipc"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        # Root keeps the right to become another user, whose processes the limit counts.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    for name, value in _ENVIRONMENT.items():
        command += ["--setenv", name, value]
    options = subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout
    if "--size" in options:
        command += ["--size", str(_TMP_BYTES)]
    # /tmp comes before the installation, because the installation may be in /tmp.
    command += ["--perms", "1777", "--tmpfs", "/tmp", "--ro-bind", "/usr", "/usr"]
    for folder in ("/lib", "/lib64", "/bin"):
        path = Path(folder)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), folder]
        elif path.is_dir():
            command += ["--ro-bind", folder, folder]
    for folder in dict.fromkeys((sys.base_prefix, sys.prefix)):
        if not Path(folder).is_relative_to("/usr"):
            for parent in list(Path(folder).parents)[-2::-1]:
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev"]
    return (*command, "--remount-ro", "/dev", "--chdir", "/tmp")
