"""Imports point down, and what must never stand in a tracked file."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdjax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What each room may import of the others; its own modules always, jobs and main never.
ALLOWED = {
    "errors": (),
    "io.redact": (),
    "io.files": ("errors",),
    "io.storage": ("errors",),
    "io.hub": ("errors",),
    "io.run_dir": ("config", "errors", "io", "parallel"),
    "records": (),
    "config": ("errors", "io.redact"),
    "config.load": ("config", "errors"),
    "logs": ("config", "errors", "io.files", "analysis"),
    "tokenizer": ("errors", "records", "models.files.gguf", "models.files.resolve"),
    "tiny": (),
    "graders": ("errors", "records"),
    "data": ("config", "errors", "io.files", "io.hub", "records"),
    "tasks": ("config", "errors", "records", "data", "graders"),
    "analysis": ("errors", "records"),
    "objectives": ("config", "errors"),
    "parallel": ("config", "errors", "io.redact"),
    "models": ("config", "errors", "io.hub", "parallel", "tokenizer"),
    "rollout": ("config", "errors", "records", "tokenizer", "models", "parallel"),
    "teacher": ("config", "errors", "records", "tokenizer"),
    "learner": ("config", "errors", "records", "models", "objectives", "parallel"),
    "bench": (
        *("config", "records", "io.files", "logs", "models", "rollout", "learner", "parallel"),
    ),
    "plan": (
        *("config", "errors", "bench.peaks", "models", "learner", "parallel"),
        "rollout.engine",
    ),
    "training": (
        *("config", "errors", "records", "tokenizer", "io", "logs", "data", "tasks", "analysis"),
        *("objectives", "parallel", "models", "rollout", "teacher", "learner"),
    ),
    "main": ("config", "errors", "parallel.launch", "io.redact"),
}
WITHOUT_JAX = (
    *("errors", "io.files", "io.hub", "io.redact", "io.storage", "records", "config", "main"),
    *("logs.writers", "logs.terminal", "tokenizer"),
    *("graders", "analysis", "tasks", "data", "teacher.reprompt"),
)
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}


def imports(path):
    """Yields (line, module, name or None) for every import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, node.module, alias.name


def own_imports(path):
    """Yields (line, module of sdjax without the prefix "sdjax.") for every import of ours."""
    for line, module, name in imports(path):
        if module.split(".")[0] == "sdjax":
            full = f"{module}.{name}"
            target = full if full in MODULES else module
            yield line, target.removeprefix("sdjax").lstrip(".")


def is_in(module, names):
    return any(module == name or module.startswith(f"{name}.") for name in names)


def modules_of(*rooms):
    return {
        name: path
        for name, path in MODULES.items()
        if is_in(name.removeprefix("sdjax").lstrip("."), rooms)
    }


def test_every_room_has_its_rule():
    rooms = {name.split(".")[1] for name in MODULES if name != "sdjax"}
    assert rooms == {name.split(".")[0] for name in ALLOWED} | {"jobs"}
    assert rooms >= {"config", "records", "errors", "main", "jobs", "analysis", "teacher"}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_down(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in modules_of(room).values()
        for line, target in own_imports(path)
        if not is_in(target, (room, *ALLOWED[room]))
    ]
    assert not wrong


def test_jobs_import_neither_main_nor_flags():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for name, path in MODULES.items()
        for line, module, _ in imports(path)
        if (module.split(".")[0] == "tyro" and name != "sdjax.config.load")
        or module == "sdjax.main"
    ]
    assert not wrong


def test_nothing_private_is_imported_from_another_module():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name} of {module}"
        for path in MODULES.values()
        for line, module, name in imports(path)
        if module.startswith("sdjax") and name and name.startswith("_")
    ]
    assert not wrong


def test_rooms_without_jax_do_not_name_it():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules_of(*WITHOUT_JAX).values()
        for line, module, _ in imports(path)
        if module.split(".")[0] in JAX
    ]
    assert not wrong


def test_rooms_without_jax_do_not_load_it():
    names = sorted(modules_of(*WITHOUT_JAX))
    script = (
        f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
        f"print(sorted({JAX} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


def test_objectives_know_arrays_only():
    known = {"jax", "numpy", "sdjax", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules_of("objectives").values()
        for line, module, _ in imports(path)
        if module.split(".")[0] not in known
    ]
    assert not wrong


@pytest.fixture(scope="module")
def tracked():
    """Returns the text of every file that git tracks or would track, by path."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    texts = {}
    for name in sorted({*listed.split("\0")} - {""}):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data:
                texts[name] = data.decode("utf-8")
    assert "pyproject.toml" in texts
    return texts


def python(tracked):
    return {name: text for name, text in tracked.items() if name.endswith(".py")}


def test_no_python_file_is_longer_than_a_sitting(tracked):
    long = {name: text.count("\n") for name, text in python(tracked).items()}
    assert {name: lines for name, lines in long.items() if lines > 600} == {}


def test_there_is_no_drawer_for_everything(tracked):
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py"}
    assert [name for name in tracked if Path(name).name in drawers] == []


def test_no_path_of_a_machine_is_in_a_tracked_file(tracked):
    own = {str(ROOT), sys.prefix, str(Path.home())}
    names = [re.escape(path) for path in own if path.count("/") >= 2]
    names += [rf"/{top}/" for top in ("home", "root", "Users", "work", "tmp/w")]
    pattern = re.compile(rf"(?<![\w.~])(?:{'|'.join(names)})")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in tracked.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def configured_registries():
    """Returns hosts and folders from which this machine's pip installs, but for public ones."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60
    ).stdout
    given = [listed, *(value for key, value in os.environ.items() if key.startswith("PIP_"))]
    urls = [urlsplit(url) for text in given for url in re.findall(r"\w+://[^\s'\"]+", text)]
    found = {url.hostname or url.path for url in urls}
    return found - {"pypi.org", "files.pythonhosted.org", "download.pytorch.org"}


def test_no_registry_of_a_machine_is_in_a_tracked_file(tracked):
    registries = configured_registries()
    found = [(name, r) for name, text in tracked.items() for r in registries if r in text]
    assert not found


def test_nothing_runs_code_that_came_as_data(tracked):
    found = []
    for name, text in python(tracked).items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names]
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                bad = {module.split(".")[0] for module in modules} & {
                    "pickle",
                    "cloudpickle",
                    "dill",
                    "marshal",
                    "shelve",
                }
                found += [f"{name}:{node.lineno}: imports {module}" for module in bad]
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name) and node.func.id == "eval":
                    found.append(f"{name}:{node.lineno}: calls eval")
                for keyword in node.keywords:
                    on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                    if keyword.arg in ("trust_remote_code", "allow_pickle") and on:
                        found.append(f"{name}:{node.lineno}: {keyword.arg}=True")
    assert not found
