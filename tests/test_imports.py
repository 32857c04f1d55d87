"""Imports point down, names are unique, functions are short; tracked files name no machine."""

import ast
import functools
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from paths import ROOT

PACKAGE = ROOT / "sdjax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What each room, or a module of it, may import from other rooms. Its own modules are always
# allowed, jobs and main never. A moved file needs a change here only if it changes rooms.
ALLOWED = {
    "errors": (),
    "io.redact": ("errors",),
    "io.files": ("errors",),
    "io.network": (),
    "io.storage": ("errors", "io.network"),
    "io.lease": ("errors", "io.storage"),
    "io.progress": (),
    "io.hub": ("errors", "io.network", "io.progress"),
    "io.environment": ("",),  # the version
    "io.code_files": ("",),
    "io.run_record": ("config", "errors", "io"),
    "io.run_dir": ("config", "errors", "io", "parallel"),
    "records": (),
    "own_functions": ("errors",),
    "config": ("errors", "io.redact", "own_functions"),
    "config.load": ("config", "errors", "own_functions"),
    "logs": (
        *("config", "errors", "io.files", "io.lease", "io.progress", "io.redact", "analysis"),
    ),
    "token_pieces": (),
    "tokenizer": (
        *("errors", "records", "token_pieces"),
        *("models.files.resolve", "models.files.tokenizer_files"),
    ),
    "tiny": (),
    "graders": ("errors", "records", "own_functions"),
    "data": ("config", "errors", "io.files", "io.hub", "io.network", "io.progress", "records"),
    "tasks": (
        *("config", "errors", "io.files", "io.progress", "records", "data", "graders"),
        *("own_functions", "rollout.server.http"),  # the last one for the judge
    ),
    "analysis": ("errors", "io.files", "records"),
    "objectives": ("config", "errors"),
    "parallel": ("config", "errors", "io.redact", "io.code_files"),
    "models": ("config", "errors", "io.files", "io.hub", "io.progress", "parallel", "tokenizer"),
    "rollout": ("config", "errors", "records", "tokenizer", "models", "parallel"),
    "teacher": ("config", "errors", "records", "tokenizer", "objectives", "analysis.accuracy"),
    "learner": (*("config", "errors", "io.lease", "records", "models", "objectives", "parallel"),),
    "bench": (
        *("config", "records", "io.files", "logs", "models", "rollout", "learner", "parallel"),
        "objectives",
    ),
    "plan": (
        *("config", "errors", "bench.peaks", "models", "learner", "parallel"),
        "teacher.contexts",
        "rollout.engine",
    ),
    "training": (
        *("config", "errors", "records", "tokenizer", "io", "logs", "data", "tasks", "analysis"),
        *("objectives", "parallel", "models", "rollout", "teacher", "learner"),
    ),
    "__main__": ("main",),
    "main": (
        *("config", "errors", "parallel.launch"),
        *("io.redact", "io.environment", "io.lease", "io.code_files"),
    ),
}
# Rooms and modules that neither import jax nor load it, directly or through others.
WITHOUT_JAX = (
    *("errors", "io.files", "io.hub", "io.progress", "io.redact", "io.storage", "records"),
    *("config", "main"),
    *("logs.writers", "logs.terminal", "tokenizer", "token_pieces"),
    *("graders", "analysis", "tasks", "data", "teacher.reprompt"),
    *("jobs.report_job", "jobs.prepare_job", "jobs.traces_job"),
)
# Those of them that load neither transformers nor matplotlib either, so that they start at once.
LIGHT = ("errors", "records", "own_functions", "config", "main", "analysis", "jobs.report_job")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
# Rooms whose functions take 8 arguments at most, and the kernels that Pallas calls with a reference
# per array.
FEW_ARGUMENTS = ("learner", "training", "models.network", "rollout")
KERNELS = {"models.network.decode_kernels": {"attend", "_attend"}}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path):
    """Returns (line, module, name or None) of every import of a file, wherever it stands."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, node.module, alias.name) for alias in node.names]
    return found


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
        or (module == "sdjax.main" and name != "sdjax.__main__")
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


def test_rooms_without_jax_import_none_that_names_it():
    """Also inside functions, where an import is missing from the test below."""
    names_jax = {
        name
        for name, path in MODULES.items()
        if any(module.split(".")[0] in JAX for _, module, _ in imports(path))
    }
    wrong = []
    for start in modules_of(*WITHOUT_JAX).keys() - {"sdjax.main"}:  # which starts every job
        reached, todo = {start: start}, [start]
        for name in todo:
            new = {f"sdjax.{module}" for _, module in own_imports(MODULES[name])} - reached.keys()
            todo += sorted(new & MODULES.keys())
            reached |= {module: f"{reached[name]} -> {module}" for module in new}
        wrong += [way for module, way in reached.items() if module in names_jax]
    assert not wrong


@pytest.mark.heavy
def test_rooms_without_jax_do_not_load_it():
    """One process for all of them: first the light ones, then the others."""
    light, every = (sorted(modules_of(*rooms)) for rooms in (LIGHT, WITHOUT_JAX))
    script = (
        "import importlib, sys\n"
        f"for names, unwanted in (({light}, {JAX | {'transformers', 'matplotlib'}}),"
        f" ({every}, {JAX})):\n"
        "    for name in names:\n        importlib.import_module(name)\n"
        "    print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n[]\n", done.stderr


def test_objectives_know_arrays_only():
    known = {"jax", "numpy", "sdjax", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules_of("objectives").values()
        for line, module, _ in imports(path)
        if module.split(".")[0] not in known
    ]
    assert not wrong


def repeated(places):
    """Returns the names that stand in several places, with these."""
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_module_files_share_a_name():
    places = defaultdict(list)
    for name, path in MODULES.items():
        if path.stem != "__init__":
            places[path.stem].append(name)
    assert repeated(places) == {}


def test_no_two_public_types_share_a_name():
    """Classes, and aliases of types such as `Array = jax.Array | np.ndarray`."""
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                found = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = [t.id for t in targets if isinstance(t, ast.Name) and not t.id.isupper()]
            else:
                continue
            for one in found:
                if one[0].isupper():
                    places[one].append(name)
    assert repeated(places) == {}


def functions(*rooms):
    """Yields (module without the prefix "sdjax.", node) of every function, also inside others."""
    for name, path in modules_of(*rooms).items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name.removeprefix("sdjax."), node


def is_kernel(module, node):
    return node.name in KERNELS.get(module, ())


def test_at_most_five_functions_are_longer_than_60_lines():
    rooms = {name.split(".")[0] for name in ALLOWED} | {"jobs"}
    long = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, node in functions(*rooms)
        if node.end_lineno - node.lineno >= 60 and not is_kernel(module, node)
    }
    assert len(long) <= 5, long


@pytest.mark.parametrize("room", FEW_ARGUMENTS)
def test_no_function_takes_more_than_8_arguments(room):
    many = {}
    for module, node in functions(room):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        number = sum(argument.arg not in ("self", "cls") for argument in given)
        if number > 8 and not is_kernel(module, node):
            many[f"{module}.{node.name}"] = number
    assert many == {}


def test_every_named_kernel_exists():
    found = {(module, node.name) for module, node in functions(*KERNELS)}
    assert found >= {(module, name) for module, names in KERNELS.items() for name in names}


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
    words = re.compile("pickle|dill|marshal|shelve|eval|trust_remote_code")  # else nothing to find
    for name, text in python(tracked).items():
        for node in ast.walk(ast.parse(text)) if words.search(text) else ():
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


# What begins a run or the work of a user, fills a cache, or has no run directory.
MAKE_FOLDERS = {
    *("config.starter", "data.sources", "io.hub", "io.lease", "io.run_dir", "io.storage"),
    *("analysis.report.plots", "jobs.traces_job", "training.loaded_model"),
}


def test_only_what_checks_that_a_run_directory_stays_makes_the_folders_above_too():
    making = {
        name.removeprefix("sdjax.")
        for name, path in MODULES.items()
        if "parents=True" in path.read_text()
    }
    assert making == MAKE_FOLDERS
