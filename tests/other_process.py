"""Code in a process of its own: devices must be asked for before jax starts."""

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, **env: str) -> str:
    """Returns what the code prints; it must end well, and without moving whole arrays."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return done.stdout


def on_eight_devices(code: str) -> str:
    """Returns what the code prints on eight fake devices."""
    return run(code, XLA_FLAGS="--xla_force_host_platform_device_count=8")
