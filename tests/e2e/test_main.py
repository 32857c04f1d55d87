import dataclasses
import re
import shlex
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest
from paths import ROOT

import sdjax
from sdjax import config
from sdjax.config.load import job_classes, load
from sdjax.errors import UserError
from sdjax.main import main, resume_command

HEAD = "from sdjax.config import *\nfrom sdjax.tasks.arithmetic import Arithmetic\n"
GOOD = HEAD + 'config = Train(out="runs/x", task=Arithmetic())\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Returns a function that writes a config file into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="configs/mine.py"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def jobs(monkeypatch):
    """Puts a job in place of each real one; returns the configs they are run with."""
    seen = []
    for job in job_classes():
        name = f"sdjax.jobs.{job.__name__.lower()}_job"
        module = types.ModuleType(name)
        module.run = seen.append
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def error_line(capsys, argv):
    """Returns the one line on stderr of a run that must end with exit code 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("sdjax: error: ") and captured.out == ""
    return line.removeprefix("sdjax: error: ")


BAD_FILES = {
    "syntax": (GOOD + "x = (1,\n", ["configs/mine.py, line 4", "never closed"]),
    "indentation": (GOOD + "  x = 1\n", ["configs/mine.py, line 4", "indent"]),
    "name": (HEAD + "config = Trian()\n", ["line 3", "'Trian'", "perhaps you meant Train"]),
    "import": (
        "from sdjax.config import Trian\n",
        ["line 1", "Trian", "perhaps you meant Train"],
    ),
    "module": ("import no_such_package\n", ["line 1", "no_such_package"]),
    "keyword": (
        HEAD + "config = Train(out='x', task=Arithmetic(), optim=Optim(lrr=1))\n",
        ["line 3", "'lrr'", "perhaps you meant lr"],
    ),
    "strange keyword": (
        HEAD + "config = Train(out='x', task=Arithmetic(), log=Log(verbosity=1))\n",
        ["line 3", "'verbosity'", "its fields are to, project, "],
    ),
    "missing field": (HEAD + "config = Train(out='x')\n", ["line 3", "'task'"]),
    "value": (
        HEAD + "optim = Optim(\n    lr=-1.0,\n)\nconfig = Train(out='x', task=Arithmetic())\n",
        ["configs/mine.py, line 3: optim.lr is -1.0: must not be negative"],
    ),
    "combination": (
        HEAD + "config = Train(out='x', task=Arithmetic(), optim=Optim(minibatches=5))\n",
        ["line 3", "optim.minibatches is 5: must divide rollout.prompts_per_step (32)"],
    ),
    "group size": (
        HEAD + "config = Train(out='x', task=Arithmetic(), rollout=Rollout(group_size=1))\n",
        ["line 3", "rollout.group_size is 1: needs at least 2"],
    ),
    "type that fails early": (
        HEAD + "config = Train(out='x', task=Arithmetic(), optim=Optim(lr='fast'))\n",
        ["line 3", "Optim.lr is 'fast': must be float"],
    ),
    "type": (
        HEAD + "config = Train(out='x', task=Arithmetic(), data=Data(seed=1.5))\n",
        ["configs/mine.py: data.seed is 1.5: must be int"],
    ),
    "bool for a number": (
        HEAD + "config = Train(out='x', task=Arithmetic(), seed=True)\n",
        ["seed is True: must be int"],
    ),
    "choice": (
        HEAD + "config = Train(out='x', task=Arithmetic(), teacher=Teacher(kind='frozen'))\n",
        ["teacher.kind is 'frozen': must be one of 'initial', 'live'"],
    ),
    "optional": (
        HEAD + "config = Evaluate(out='x', task=Arithmetic(), enable_thinking='no')\n",
        ["enable_thinking is 'no': must be bool or None"],
    ),
    "section": (
        HEAD + "config = Train(out='x', task=Model())\n",
        ["task is Model(", "must be Task"],
    ),
    "no config": (HEAD, ["configs/mine.py: does not bind `config`", "Train, SFT, Study"]),
    "wrong config": (HEAD + "config = Model()\n", ["of type Model", "Train, SFT, Study"]),
    "class": (HEAD + "config = Train\n", ["of type type", "Train, SFT, Study"]),
    "own error": ("raise RuntimeError('one\\ntwo')\n", ["line 1: RuntimeError: one two"]),
}


@pytest.mark.parametrize(("text", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_config_file_is_one_line_with_file_thing_and_remedy(write, capsys, text, said):
    line = error_line(capsys, ["--config", write(text)])
    assert "configs/mine.py" in line
    for part in said:
        assert part in line


BAD_ARGUMENTS = {
    "--optim.lrr 3": ["--optim.lrr", "perhaps you meant --optim.lr"],
    "--group_size 4": ["--group_size", "perhaps you meant --rollout.group_size"],
    "--optim.lrr 3 --policy.clip_hihg 1": ["--optim.lr", "--policy.clip_high"],
    "--nothing.like.it 3": ["--nothing.like.it", "--help lists every field"],
    "--optim.learning_rate 3": ["--optim.learning_rate", "perhaps you meant --optim.lr"],
    "--max_steps 3": ["--max_steps", "perhaps you meant --steps"],
    "--optim.lr fast": ["--optim.lr", "'fast'", "--help"],
    "--rollout.group_size 4.5": ["rollout.group_size is '4.5': must be a whole number", "--help"],
    "--rollout.group_size": ["--rollout.group_size", "Missing value"],
    "--optim.lr -1": ["optim.lr is -1.0: must not be negative"],
    "--loss.alpha 1.5": ["loss.alpha is 1.5: must lie in [0, 1]"],
    "--optim.microbatch 7": ["optim.microbatch is 7: must divide the 256 completions"],
    "--reprompt.demonstration frist": ["'frist'", "--reprompt.demonstration", "'first'"],
    "--reprompt.template {prompt}": ["reprompt.template is '{prompt}': needs {solution}"],
    "--reprompt.template {prompt}{solution} --reprompt.feedback": ["needs {feedback}"],
    "--reprompt.template {prompt}{feedback} --reprompt.feedback": ["needs {solution}"],
    "--reprompt.template {prompt}{feedback} --reprompt.demonstration none": ["reprompt.feedback"],
    "--resume yes": ["yes", "--help"],
    "stray": ["stray", "--help"],
}


@pytest.mark.parametrize(("arguments", "said"), BAD_ARGUMENTS.items(), ids=BAD_ARGUMENTS)
def test_a_bad_override_is_one_line_with_name_and_remedy(write, capsys, arguments, said):
    line = error_line(capsys, ["--config", write(GOOD), *arguments.split()])
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["no config", "--config FILE", "--help"]),
        (["--optim.lr", "1"], ["no config", "--config FILE"]),
        (["--config"], ["--config needs a file"]),
        (["--config", "--seed"], ["--config needs a file"]),
        (["--config="], ["--config needs a file"]),
        (["--config", "configs/mien.py"], ["mien.py", "perhaps you meant configs/mine.py"]),
        (["--config", "configs"], ["configs: not a readable config file"]),
    ],
)
def test_a_missing_config_file_is_one_line_with_a_remedy(write, capsys, arguments, said):
    write(GOOD)
    line = error_line(capsys, arguments)
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config"], ["unknown command 'config'", "perhaps you meant", " configs"]),
        (["inti", "mine"], ["unknown command 'inti'", " init"]),
        (["train"], ["unknown command 'train'", "the commands are configs and init", "--config"]),
        (["configs/mine.py", "--steps", "3"], ["perhaps you meant", "--config configs/mine.py"]),
        (["quickstart"], ["perhaps you meant", "--config package:quickstart"]),
        (["--cofnig", "configs/mine.py"], ["unknown option --cofnig; perhaps you meant --config"]),
        (["--cofnig=configs/mine.py"], ["unknown option --cofnig; perhaps you meant --config"]),
        (["--hlep"], ["unknown option --hlep; perhaps you meant --help"]),
        (["configs", "mintature"], ["'mintature' in its name", "`sdjax configs` lists all"]),
    ],
)
def test_a_wrong_command_is_one_line_with_the_nearest(write, capsys, arguments, said):
    write(GOOD)
    line = error_line(capsys, arguments)
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("/usr/bin/sdjax", "sdjax"),
        ("C:/Scripts/sdjax.exe", "sdjax"),
        ("/site-packages/sdjax/__main__.py", "python -m sdjax"),
        ("/site-packages/sdjax/main.py", "python -m sdjax.main"),
        ("/usr/bin/pytest", "python -m sdjax.main"),
    ],
)
def test_messages_name_the_command_that_was_typed(script, command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script])
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {command} --config FILE")
    assert resume_command(["--config", "c.py"]) == f"{command} --config c.py --resume"


def test_the_example_of_help_is_a_config(write, capsys):
    main(["--help"])
    shown = re.search(r"(  from sdjax.*?\n  \)\n)", capsys.readouterr().out, re.DOTALL)[1]
    assert isinstance(load(write(textwrap.dedent(shown))), config.Train)


def test_a_file_that_is_not_text_is_one_line(write, capsys):
    write(GOOD)
    Path("configs/model.gguf").write_bytes(b"GGUF\xff\xfe\x00")
    assert "not a readable config file" in error_line(capsys, ["--config", "configs/model.gguf"])
    assert "null bytes" in error_line(capsys, ["--config", write("x = 1\x00")])


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"sdjax {sdjax.__version__}")


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (
            ["--config", "my c.py", "--task.system", "Be brief."],
            "'my c.py' --task.system 'Be brief.'",
        ),
        (["--resume", "True", "--config=c.py", "--steps", "3"], "--config=c.py --steps 3"),
        (["--config", "c.py", "--no_resume", "--allow", "optim"], "--config c.py --allow optim"),
    ],
)
def test_the_command_that_goes_on_has_all_arguments_and_resume_once(given, command):
    made = resume_command(given)
    assert made.endswith(f"{command} --resume") and made.count("--resume") == 1
    assert shlex.split(made)[:3] == ["python", "-m", "sdjax.main"]


def test_overrides_reach_the_job_and_the_task_keeps_its_class(write, jobs):
    arguments = "--task.held-out 7 --task.held_out 9 --optim.lr 1e-6 --loss.token_clip 2 --resume"
    assert main(["--config", write(GOOD), *arguments.split()]) == 0
    (job,) = jobs
    assert type(job) is config.Train
    assert type(job.task).__name__ == "Arithmetic" and job.task.held_out == 9
    assert (job.optim.lr, job.loss.token_clip, job.resume) == (1e-6, 2.0, True)
    assert job.optim.warmup_steps == config.Optim().warmup_steps


def test_the_order_of_arguments_is_free(write, jobs):
    file = write(GOOD)
    assert main(["--steps", "3", f"--config={file}", "--seed", "4"]) == 0
    assert (jobs[0].steps, jobs[0].seed) == (3, 4)


def test_combinations_are_checked_with_all_overrides_applied(write, jobs, capsys):
    file = write(GOOD.replace("Arithmetic()", "Arithmetic(), optim=Optim(microbatch=4)"))
    assert main(["--config", file, "--rollout.prompts_per_step", "1"]) == 0
    line = error_line(
        capsys, ["--config", file, "--optim.microbatch", "16", "--rollout.prompts_per_step", "1"]
    )
    assert "must divide the 8 completions" in line


def test_a_config_file_may_define_its_own_task_and_start_from_its_neighbour(write, jobs):
    write(GOOD, "configs/first_config.py")
    file = write(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from first_config import config as base\n"
        "from sdjax.config import TaskConfig\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Mine(TaskConfig):\n"
        "    '''My questions.'''\n"
        "    names: tuple[str, ...] = ('a',)\n"
        "config = dataclasses.replace(base, task=Mine())\n",
        "configs/second_config.py",
    )
    before = list(sys.path)
    assert main(["--config", file, "--task.names", "x", "y"]) == 0
    assert sys.path == before
    assert jobs[0].task.names == ("x", "y")


def test_a_job_goes_to_its_own_module(write, jobs):
    file = write(HEAD + "config = Export(run='runs/x', out='model')\n")
    assert main(["--config", file, "--step", "3"]) == 0
    assert jobs == [config.Export(run="runs/x", out="model", step=3)]


def raising(error):
    def run(job):
        raise error

    return run


def test_a_users_mistake_inside_a_job_is_one_line_and_a_traceback_with_debug(write, jobs, capsys):
    sys.modules["sdjax.jobs.train_job"].run = raising(UserError("data.csv: row 3\nis empty"))
    assert error_line(capsys, ["--config", write(GOOD)]) == "data.csv: row 3 is empty"
    assert main(["--config", write(GOOD), "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-1].startswith("sdjax: error: data.csv")


def test_a_bug_keeps_its_traceback(write, jobs):
    sys.modules["sdjax.jobs.train_job"].run = raising(ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        main(["--config", write(GOOD)])


def test_an_interrupted_run_exits_with_130(write, jobs, capsys):
    sys.modules["sdjax.jobs.train_job"].run = raising(KeyboardInterrupt())
    assert main(["--config", write(GOOD)]) == 130
    assert capsys.readouterr().err == "sdjax: interrupted\n"


def test_debug_shows_where_a_config_file_failed(write, capsys):
    assert main(["--debug", "--config", write("x = 1\nraise KeyError('why')\n")]) == 2
    shown = capsys.readouterr().err
    assert "raise KeyError('why')" in shown or "KeyError: 'why'" in shown
    assert "Traceback" in shown


def test_help_of_a_config_documents_every_field_with_its_default(write, capsys):
    assert main(["--config", write(GOOD), "--help"]) == 0
    shown = capsys.readouterr().out

    def check(section, prefix):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                check(value, f"{prefix}{field.name}.")
            elif value != {}:  # the names of out_of_domain are given in a config file
                assert f"--{prefix}{field.name}" in shown

    check(config.Train(out="runs/x", task=config.TaskConfig()), "")
    assert "--task.name" in shown  # the task's own
    for part in (
        "(default: 1e-05)",
        "0 takes the likeliest",
        "completions of each",
        "{initial,live",
    ):
        assert part in shown


def run(*argv):
    start = time.monotonic()
    command = [sys.executable, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - start


def test_help_is_fast_names_the_jobs_and_imports_nothing_heavy():
    done, seconds = run("-X", "importtime", "-m", "sdjax.main", "--help")
    assert done.returncode == 0 and seconds < 3
    for job in job_classes():
        assert f"  {job.__name__} " in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "sdjax.config" in imported
    assert not imported & {"jax", "numpy", "transformers", "tyro", "torch", "flax"}


@pytest.mark.heavy
def test_nothing_of_jax_is_imported_before_the_job_starts(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    script = (
        "import sys, time; from sdjax.config.load import load, override\n"
        "from pathlib import Path\n"
        "job = override(load(Path(sys.argv[1])), ['--steps', '3'], prog='x')\n"
        "heavy = {'jax', 'flax', 'transformers', 'tensorflow_datasets', 'grain', 'torch'}\n"
        "print(job.steps, heavy & set(sys.modules))\n"
    )
    done, seconds = run("-c", script, str(file))
    assert done.stdout == "3 set()\n", done.stderr
    assert seconds < 5


def test_a_config_as_it_stands_needs_no_parser(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    script = (
        "import sys; sys.modules['tyro'] = None\n"
        "from sdjax.config.load import load, override\n"
        "from pathlib import Path\n"
        "print(override(load(Path(sys.argv[1])), [], prog='x').out)\n"
    )
    done, _ = run("-c", script, str(file))
    assert done.stdout == "runs/x\n", done.stderr


@pytest.mark.heavy
def test_a_missing_model_ends_the_real_command_with_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    out = tmp_path / "run"
    done, _ = run(
        "-m", "sdjax.main", "--config", str(file), "--out", str(out), "--model.path", "./no_such",
        "--task.size", "300",
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sdjax: error: ") and "no_such" in line
    assert not out.exists()


def test_a_reader_that_leaves_is_no_error():
    shell = f"set -o pipefail; {shlex.quote(sys.executable)} -m sdjax --help | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
