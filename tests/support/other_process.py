"""Code in a process of its own: devices must be asked for before jax starts."""

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, *args: str, **env: str) -> str:
    """Returns what the code prints; it must end well, and without moving whole arrays."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return done.stdout


def on_eight_devices(code: str, *args: str) -> str:
    """Returns what the code prints on eight fake devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    return run(code, *args, XLA_FLAGS=flags)
