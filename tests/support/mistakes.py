"""Commands that are expected to fail: how they are run, and what must hold of every one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sdjax.main import main

TASK = {
    "sums": """
from sdjax.tasks.arithmetic import Arithmetic
TASK = Arithmetic(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                  size=20, held_out=6)
""",
    "file": """
from sdjax.tasks.sciknoweval import SciKnowEval
TASK = SciKnowEval(train="TRAIN", test="TEST", held_out=2)
""",
}
CONFIG = """
from sdjax.config import *
config = Train(out="OUT", steps=1, task=TASK, model=Model(path="MODEL", compute_dtype="float32"),
    rollout=Rollout(prompts_per_step=2, group_size=2, max_prompt_tokens=400,
                    max_completion_tokens=8),
    reprompt=Reprompt(max_tokens=450), optim=Optim(microbatch=2),
    eval=Eval(k=1, examples=2, max_completion_tokens=8),
    log=Log(progress=False, to=(), alternatives_of=0),
    checkpoint=Checkpoint(export=False))
"""
EVALUATE = """
from sdjax.config import *
config = Evaluate(out="OUT", task=TASK, model=Model(path="MODEL", compute_dtype="float32"),
    max_prompt_tokens=400, eval=Eval(k=1, examples=2, max_completion_tokens=8, every=0))
"""
EXPORT = """
from sdjax.config import *
config = Export(run="RUN", out="OUT")
"""
PARTS = """
from sdjax.config import *
from sdjax.tasks.countdown import Countdown
small = Model(path="MODEL", compute_dtype="float32")
short = Eval(k=1, examples=2, max_completion_tokens=8, every=0)
"""
JOBS = {
    "sft": """config = SFT(out="OUT", source="TRAIN", max_tokens=300, batch=2, steps=1,
    model=small, optim=Optim(microbatch=2), checkpoint=Checkpoint(export=False))""",
    "study": """config = Study(out="OUT", task=TASK, problems=2, tried=4, solved_max=1, model=small,
    max_prompt_tokens=400, eval=short)""",
    "evaluate": """config = Evaluate(out="OUT", task=TASK, max_prompt_tokens=400, model=small,
    eval=short)""",
    "traces": """config = Traces(out="OUT", rows=10, tasks={"any": Countdown()})""",
    "report": """config = Report(runs=("RUN",), out="OUT.html")""",
    "bench": """config = Bench(out="OUT", model=small, weights="model")""",
    "prepare": """config = Prepare(name="made", splits={"train": "TRAIN"}, out="OUT")""",
    "export": """config = Export(run="RUN", out="OUT")""",
    "plan": """config = Plan(train=("RUN.py",), compile=False, out="OUT")""",
    "preflight": """config = Preflight(train="package:tiny/sdpo", out="OUT",
    change=("model.compute_dtype=float32",))""",
}
JOBS = {name: PARTS + text for name, text in JOBS.items()}
JOBS["sweep"] = CONFIG + """config = Sweep(out="OUT", runs={"a": config}, values=(1, 2))"""
ROW = {
    "answer": "A",
    "prompt": "Which?\n\nA: one\nB: two\nPlease reason step by step.",
    "system": "Answer.",
}


def rows(*changed, name="Question"):
    """Returns JSON lines of four good rows, with these fields of one row changed (None: gone)."""
    out = []
    for i in range(4):
        row = ROW | {"idx": i, "prompt": f"{name} {i}. " + ROW["prompt"]}
        for at, field, value in changed:
            if at == i and value is None:
                row.pop(field)
            elif at == i:
                row[field] = value
        out.append(json.dumps(row))
    return out


class Attempt:
    """A command that is expected to fail, in a folder of its own."""

    def __init__(self, folder, model, capsys):
        self.folder, self.model, self.capsys = folder, str(model), capsys
        self.out = folder / "run"
        self.data = {"TRAIN": "train.json", "TEST": "test.json"}
        (folder / "train.json").write_text("\n".join(rows()))
        (folder / "test.json").write_text("\n".join(rows(name="Other")))

    def write(self, config, task):
        text = TASK[task] + config
        words = {"OUT": self.out, "MODEL": self.model, "RUN": self.folder / "made"}
        for word, value in (words | self.data).items():
            path = self.folder / str(value) if word in self.data and "://" not in value else value
            text = text.replace(word, str(path))
        file = self.folder / "c.py"
        file.write_text(text)
        return file

    def __call__(self, *args, config=CONFIG, task="file", code=2):
        """Returns the one line that the command ends with."""
        file = self.write(config, task)
        before = contents(self.out)
        ended, shown = self.run(["--config", str(file), *args])
        assert ended == code, shown
        said = [line for line in shown.splitlines() if not line.startswith("loaded ")]
        assert len(said) == 1 and said[0].startswith("sdjax: error: "), shown
        assert contents(self.out) == before, "something was written"
        assert len(said[0]) < 700, said[0]
        return said[0].removeprefix("sdjax: error: ")

    def run(self, argv):
        """Returns the exit code of the program and what it wrote on stderr."""
        self.capsys.readouterr()
        return main(argv), self.capsys.readouterr().err


class RealAttempt(Attempt):
    """A command that is expected to fail, as a process of its own. `seconds` is how long it took.

    The time in which the process was ready but another one had the core does not count.
    """

    def __init__(self, folder, model):
        folder.mkdir()
        super().__init__(folder, model, None)
        self.seconds = 0.0

    def run(self, argv):
        """Returns the exit code of the process and what it wrote on stderr."""
        command = [sys.executable, "-m", "sdjax.main", *argv]
        with (self.folder / "stderr.txt").open("w+") as errors:
            start = time.monotonic()
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=errors
            )
            # The kernel keeps the process's times until it is waited for.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall = time.monotonic() - start
            waited = Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]
            self.seconds = wall - int(waited) / 1e9
            code = process.wait()
            errors.seek(0)
            return code, errors.read()


def contents(path):
    if not path.exists():
        return None
    if path.is_file():
        return path.read_bytes()
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def says(line, *words):
    for word in words:
        assert word in line, line
