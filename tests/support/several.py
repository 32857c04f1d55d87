"""Runs the command in several processes of one machine, joined on loopback (gloo).

As a program, this file runs the jobs of several config files one after the other. Its processes
join once, and import and compile once what the jobs share.
"""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    seconds: float


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Run:
    """Started processes; `cwd` may name a working directory for each."""

    def __init__(self, args, *, processes=2, devices=4, cwd=None, program=("-m", "sdjax.main")):
        flags = []
        if processes > 1:
            flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
        self.start = time.monotonic()
        self.processes = []
        for i in range(processes):
            env = os.environ | {
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
                f"--xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
            }
            own = [*args, *flags, "--process", str(i)] if flags else args
            started = subprocess.Popen(
                [sys.executable, *program, *own],
                cwd=cwd[i] if cwd else ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.processes.append(started)

    def ended(self, timeout=500):
        """Waits for all processes, kills them after the timeout, and returns how each ended."""
        results = []
        try:
            for process in self.processes:
                left = max(self.start + timeout - time.monotonic(), 0.1)
                out, err = process.communicate(timeout=left)
                results.append(Ended(process.returncode, out, err, time.monotonic() - self.start))
        finally:
            for process in self.processes:
                process.kill()
        return results


def run(args, **how):
    return Run(args, **how).ended()


def jobs(files, **how):
    """Runs the jobs of these config files; returns how each process ended."""
    return run([str(f) for f in files], program=(str(Path(__file__)),), **how)


if __name__ == "__main__":
    # Keeps transformers from importing torch, which takes half of the start and is not needed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from sdjax.jobs import evaluate_job, train_job
    from sdjax.main import launch_flags, load
    from sdjax.parallel import launch

    given, files = launch_flags(sys.argv[1:])
    with launch.together(launch.launch(given), {"files": files}):
        for file in files:
            job = load(Path(file))
            {"Train": train_job, "Evaluate": evaluate_job}[type(job).__name__].run(job)
