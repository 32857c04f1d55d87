"""Compiled programs stay in the cache after the process that compiled them ends."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = """
import logging
logging.basicConfig()
from sdjax.training import loaded_model
loaded_model.keep_programs()
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(7))))
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def run(**env):
    own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)} | env
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=own, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]), done.stderr


def programs(folder):
    return {file.name for file in folder.rglob("*-cache")}


@pytest.mark.heavy
def test_a_second_process_compiles_nothing_anew(tmp_path):
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == 0
    made = programs(tmp_path / "sdjax" / "xla")
    assert made
    hits, _ = run(XDG_CACHE_HOME=str(tmp_path))
    assert hits == len(made)
    assert programs(tmp_path) == made


@pytest.mark.heavy
def test_a_directory_given_to_jax_is_kept(tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path / "own"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "given"))
    assert programs(tmp_path / "given") and not (tmp_path / "own").exists()


@pytest.mark.heavy
def test_a_directory_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    hits, said = run(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert hits == 0 and "programs are compiled anew" in said
