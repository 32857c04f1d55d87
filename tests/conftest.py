"""Settings that must stand before jax starts, and a browser."""

import atexit
import gc
import logging
import os
import signal
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

# Fixtures import jax themselves, because it reads these settings as it starts.
# Tiny programs: compiling them well takes longer than running them badly, and many tests (and the
# processes that some start) compile the same ones.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Half of the time that a compilation takes; gone in 0.11, which ends at a flag unknown to it.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *FLAGS])
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a background job of a shell. The processes that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(50_000)  # traced programs are many small objects, and few of them garbage
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The lines behind each operation serve profiles, and take a fifth of tracing and lowering.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "sdjax-test-programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_configure(config):
    """Ends a worker without taking Python apart, which is 5 s of work for which the runner waits.

    The processes that a worker forks keep their exit codes.
    """
    if hasattr(config, "workerinput"):
        worker = os.getpid()
        atexit.register(lambda: os.getpid() == worker and os._exit(0))


def pytest_collection_modifyitems(items):
    """Puts whole runs first.

    A worker without tests takes the last ones of another, and repeats the fixtures of their module.
    """
    whole_runs = ("e2e", "training")
    items.sort(key=lambda item: item.path.parent.name not in whole_runs)


def pytest_collection_finish():
    """Spares the collector of garbage what importing all tests has made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logs():
    """Logs, also after a test of what runs in the graders' own processes, where none may."""
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Returns the folder of a tiny model of one layer, which no test may change."""
    import tiny

    folder = tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=1)
    written = contents(folder)
    yield folder
    assert contents(folder) == written, "a test changed the model that all tests share"


def contents(folder: Path) -> dict[Path, bytes]:
    """Returns the bytes of every file of a folder."""
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def compiled_once():
    """Makes a module's runs share their compiled functions."""
    import runs

    with runs.compiled_once():
        yield


@pytest.fixture(scope="module")
def job_server():
    """A process that has imported the program and forks each job from itself."""
    import faults

    server = faults.Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def sandboxed():
    """Skips where the code sandbox cannot run."""
    from sdjax.errors import UserError
    from sdjax.graders.code import sandbox

    try:
        sandbox.require()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    import report_browser

    with report_browser.launched() as made:
        yield made


@pytest.fixture
def opened(browser):
    """Opens reports; fails where one logs, raises, asks or loads anything."""
    import report_browser

    page = report_browser.Page(browser)
    yield page.open
    assert page.said == []
    page.page.close()


@pytest.fixture
def own_tables():
    """Undoes what a test adds to the tables of divergences and token weightings."""
    from sdjax.objectives import divergences, token_weights

    tables = (divergences.DIVERGENCES, token_weights.TOKEN_WEIGHTS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table |= entries
