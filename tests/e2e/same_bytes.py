"""Trains with two checkouts of sdjax and compares every byte that the two write.

    python tests/e2e/same_bytes.py OTHER_CHECKOUT [--steps 6] [--only NAME ...]

Both train the tiny reasoner on the CPU, from config files that use only names which both checkouts
have. The script prints one line per kind of file and exits with 1 where a kind differs. It does not
compare config.json, times or rates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("", "tests/support")]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

from paths import ROOT
from runs import arrays, timeless

IMPORTS = """\
from sdjax.config import (
    SFT, Checkpoint, Eval, Log, Loss, Model, Optim, Policy, Reprompt, Rollout, Teacher, Train
)
from sdjax.tasks.countdown import Countdown
"""
COMMON = """
    out=OUT,
    steps=STEPS,
    task=Countdown(size=40, held_out=4),
    model=Model(path="package:sdjax.tiny", compute_dtype="float32", remat="none"),
    eval=Eval(every=EVERY, k=2, examples=4, batch=4, max_completion_tokens=24),
    checkpoint=Checkpoint(every=EVERY, keep=2, export=True),
    log=Log(progress=False),
"""
TRAIN = (
    "config = Train("
    + COMMON
    + """\
    rollout=Rollout(prompts_per_step=4, group_size=4, max_prompt_tokens=64,
                    max_completion_tokens=32),
    reprompt=Reprompt(max_tokens=160, success_threshold=-1.0),
"""
)
CONFIGS = {
    "sdpo_full": TRAIN
    + """\
    loss=Loss(),
    optim=Optim(lr=1e-3, warmup_steps=0, microbatch=4),
)
""",
    "sdpo_top_k_ema": TRAIN
    + """\
    loss=Loss(divergence="top_k", top_k=20, chunk_tokens=64),
    teacher=Teacher(kind="ema", ema_rate=0.3),
    optim=Optim(lr=1e-3, warmup_steps=2, microbatch=8),
)
""",
    "grpo_blend": TRAIN
    + """\
    loss=Loss(distillation=0.4, aggregation="token"),
    policy=Policy(advantage="mean_std"),
    optim=Optim(lr=1e-3, warmup_steps=0, microbatch=4, minibatches=2),
)
""",
    "sft": "config = SFT("
    + COMMON
    + """\
    source=SOURCE,
    batch=8,
    log_every=1,
    max_tokens=96,
    max_prompt_tokens=64,
    optim=Optim(lr=1e-3, warmup_steps=0, microbatch=2, row_tokens=128),
)
""",
}
KINDS = ("checkpoints", "model", "rollouts.jsonl", "answers", "evaluations.json", "metrics.jsonl")


def conversations(file: Path) -> Path:
    """Writes 40 conversations of different lengths."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{a} + {b}?"},
                {"role": "assistant", "content": "so " * (a % 3) + str(a + b)},
            ]
        }
        for a in range(8)
        for b in range(5)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def start(checkout: Path, name: str, folder: Path, steps: int) -> subprocess.Popen:
    """Starts a checkout's training of a config, whose run directory is FOLDER/NAME."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "OUT": str(folder / name),
        "STEPS": steps,
        "EVERY": max(steps // 2, 1),
        "SOURCE": str(conversations(folder / "sums.jsonl")),
    }
    text = IMPORTS + CONFIGS[name]
    for word, value in values.items():
        text = text.replace(f"={word},", f"={value!r},")
    file = folder / f"{name}.py"
    file.write_text(text)
    return subprocess.Popen(
        [sys.executable, "-m", "sdjax.main", "--config", str(file)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), *sys.path])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(name: str, checkouts: dict[Path, Path], steps: int) -> None:
    """Trains a config with every checkout at one time, each in its own folder."""
    started = [start(checkout, name, folder, steps) for checkout, folder in checkouts.items()]
    for process, checkout in zip(started, checkouts, strict=True):
        _, printed = process.communicate()
        if process.returncode != 0:
            sys.exit(f"{checkout} does not train {name}:\n{printed[-4000:]}")


def contents(run: Path, kind: str) -> dict[str, object]:
    """Returns what must be equal of a kind of file in a run directory, by name."""
    if kind == "metrics.jsonl":
        return {kind: json.dumps(timeless(run))}
    if kind == "checkpoints":
        out: dict[str, object] = {}
        for step in sorted(p.name for p in (run / kind).iterdir() if p.name.isdigit()):
            folder = run / kind / step
            out[f"{step}/host"] = (folder / "host" / "metadata").read_bytes()
            for name, array in arrays(folder).items():
                out[f"{step}{name}"] = (array.dtype, array.shape, array.tobytes())
        return out
    at = run / kind
    files = [at] if at.is_file() else sorted(p for p in at.rglob("*") if p.is_file())
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def differences(ours: Path, theirs: Path, kind: str) -> tuple[int, list[str]]:
    """Returns how many files or arrays of a kind two runs have, and the names that differ."""
    a, b = contents(ours, kind), contents(theirs, kind)
    return len(a), sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def compare(ours: Path, theirs: Path, names: list[str]) -> bool:
    """Prints one line per kind of file, and returns whether the runs of two folders are equal."""
    equal = True
    for kind in KINDS:
        number, differ = 0, []
        for name in names:
            count, found = differences(ours / name, theirs / name, kind)
            number += count
            differ += [f"{name}/{part}" for part in found]
        said = f"different: {', '.join(differ[:8])}" if differ else "the same"
        print(f"{kind} ({number}): {said}", flush=True)
        equal = equal and not differ
    return equal


def main(args: list[str]) -> int:
    """Returns 0 where both checkouts write the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--folder", type=Path, help="keeps the runs here; default: none stay")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        ours, theirs = folder / "ours", folder / "theirs"
        for name in given.only:
            train(name, {ROOT: ours, given.other.absolute(): theirs}, given.steps)
        return 0 if compare(ours, theirs, given.only) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
