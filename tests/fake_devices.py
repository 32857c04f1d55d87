"""Code on eight fake devices, which must be asked for before jax starts: in another process."""

import os
import subprocess
import sys
from pathlib import Path


def run(code: str) -> str:
    """Returns what the code prints; it must end well, and without moving whole arrays."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return done.stdout
