"""Run directories for the report's tests, in the files that training writes, of any size."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

WORDS = (
    "the sum of these two numbers is therefore first we add then carry one over and so it "
    "follows that seven plus eight makes fifteen wait maybe I should check this actually perhaps "
    "it might seem hmm likely alternatively multiply divide equals answer because since each term"
).split()
SPECIAL = "<|im_end|>"
LEXICON = "wait hmm perhaps maybe actually alternatively seems might likely check".split()


def completion(rng: np.random.Generator, length: int) -> list[str]:
    """Returns texts of tokens: words with the space before them, now and then a line's end."""
    drawn = rng.integers(0, len(WORDS), length)
    breaks = rng.random(length) < 0.03
    pieces = [f" {WORDS[i]}" if not b else "\n" for i, b in zip(drawn, breaks, strict=True)]
    return [*pieces[: length - 1], SPECIAL]


def epistemic_tokens(pieces: list[str]) -> list[int]:
    return [i for i, piece in enumerate(pieces) if piece.strip() in LEXICON]


def rollout(
    rng: np.random.Generator, step: int, example: int, length: int, *, tops: int = 0
) -> dict:
    """Returns a line of rollouts.jsonl; with `tops` alternatives of student and teacher."""
    pieces = completion(rng, length)
    student = -rng.exponential(0.7, length)
    push = rng.normal(0, 0.4, length)
    marked = epistemic_tokens(pieces)
    push[marked] -= 1.5
    question = f"<|im_start|>user\nWhat is {example} + {step}?<|im_end|>\n<|im_start|>assistant\n"
    correct = bool(rng.random() < 0.5)
    row = {
        "step": step,
        "id": f"q{example}",
        "prompt": question,
        "completion": "".join(pieces[:-1]),
        "tokens": rng.integers(0, 50_000, length).tolist(),
        "pieces": pieces,
        "finish": "stop",
        "answer": str(example + step),
        "reward": float(correct),
        "correct": correct,
        "feedback": "" if correct else "The answer is wrong.",
        "details": {"prediction": str(example)},
        "sampler_logprobs": np.round(student + rng.normal(0, 0.02, length), 4).tolist(),
        "student_logprobs": np.round(student, 4).tolist(),
        "teacher_logprobs": np.round(np.minimum(student + push, 0), 4).tolist(),
        "student_entropy": np.round(rng.exponential(0.9, length), 4).tolist(),
        "teacher_entropy": np.round(rng.exponential(0.6, length), 4).tolist(),
        "epistemic": marked,
        "reprompt": question.replace("?", "?\nA correct solution: it is so.\n"),
        "demonstration": 1,
        "feedback_used": False,
        "distilled": True,
    }
    for who in ("student", "teacher") if tops else ():
        row[f"{who}_top"] = [
            [[piece, -0.3], *((f" {WORDS[i]}", round(float(-2 - j), 2)) for j, i in enumerate(at))]
            for piece, at in zip(
                pieces, rng.integers(0, len(WORDS), (length, tops - 1)), strict=True
            )
        ]
    return row


def metrics(rng: np.random.Generator, step: int, steps: int, every: int) -> dict:
    """Returns a line of metrics.jsonl."""
    done = step / steps
    out: dict[str, float | int] = {"step": step}
    if step:
        out |= {
            "rollout/reward": 0.3 + 0.4 * done + rng.normal(0, 0.02),
            "rollout/correct": 0.3 + 0.4 * done,
            "rollout/length": 300 - 120 * done + rng.normal(0, 5),
            "rollout/epistemic_per_1000_tokens": 12 - 8 * done + rng.normal(0, 0.3),
            "distill/reverse_kl": 0.3 - 0.2 * done,
            "student/entropy": 0.9 - 0.3 * done,
            "distill/teacher_entropy": 0.6,
            "epistemic/push": -1.5 + done,
            "epistemic/push_others": -0.1,
            "optim/grad_norm": 1.0 + rng.random(),
            "time/rollout_s": 3.0,
            "time/update_s": 1.0,
            "rollout/tokens_per_s": 1000.0,
        }
    if step % every == 0:
        out |= {
            "eval/avg@4": 0.3 + 0.4 * done + rng.normal(0, 0.02),
            "eval/length": 300 - 100 * done,
            "ood/largest_number/avg@4": 0.5 - 0.1 * done + rng.normal(0, 0.02),
        }
    return out


def evaluation(line: dict, words: dict[str, int]) -> dict:
    """Returns an entry of evaluations.json that fits a line of metrics.jsonl."""
    counts = dict.fromkeys(LEXICON, 0) | words
    rates = {"total": sum(counts.values()), "per_response": 0.1, "per_1000_tokens": 1.0}

    def of(name: str) -> dict:
        value = line[name]
        bounds = {"value": value, "low": value - 0.08, "high": value + 0.08}
        return {
            "accuracy": {"examples": 50, "k": 4, "level": 0.95, "avg@4": bounds},
            "lengths": {"completions": 200, "mean": 100.0},
            "epistemic": counts | rates,
            "epistemic_word": counts | rates,
        }

    others = {"largest_number": of("ood/largest_number/avg@4")}
    return {"step": line["step"], **of("eval/avg@4"), "out_of_domain": others}


def answers(right: dict[str, list[bool]], text: str = "", **fields) -> list[dict]:
    """Returns lines of answers/STEP.jsonl: one per answer to each question, by its id."""
    return [
        {
            "set": "sums",
            "id": name,
            "task": "sums",
            "messages": [{"role": "user", "content": f"What is {name}?"}],
            "answer": f"right {name}",
            "completion": f"{text} wait, it is {'right' if correct else 'wrong'} {name}",
            "tokens": 9,
            "thinking_tokens": 0,
            "answer_tokens": 9,
            "finish": "stop",
            "reward": float(correct),
            "correct": correct,
            "feedback": "" if correct else f"{name} is wrong",
            "details": {"prediction": name},
            **fields,
        }
        for name, graded in right.items()
        for correct in graded
    ]


def write(
    folder: Path,
    *,
    seed: int = 0,
    method: str = "sdpo",
    steps: int = 10,
    every: int = 2,
    rollouts: list[dict] | None = None,
    answered: dict[int, list[dict]] | None = None,
    parts: int = 1,
) -> Path:
    """Writes a run directory and returns it; its rollouts gzipped, if they are in parts."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {
        "class": "Train",
        "out": str(folder),
        "seed": seed,
        "steps": steps,
        "data": {"class": "Data", "seed": seed},
        "eval": {"class": "Eval", "every": every},
        "loss": {"class": "Loss", "distillation": float(method == "sdpo")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [metrics(rng, step, steps, every) for step in range(steps + 1)]
    (folder / "metrics.jsonl").write_text(text_of(lines))
    said = {0: {"wait": 40, "maybe": 10}, steps: {"wait": 4}}
    evaluated = [line for line in lines if "eval/avg@4" in line]
    history = [evaluation(line, said.get(line["step"], {"wait": 20})) for line in evaluated]
    (folder / "evaluations.json").write_text(json.dumps(history))
    for step, rows in (answered or {}).items():
        (folder / "answers").mkdir(exist_ok=True)
        (folder / "answers" / f"{step:06}.jsonl").write_text(text_of(rows))
    made = rollouts if rollouts is not None else small(rng, steps)
    if parts == 1:
        (folder / "rollouts.jsonl").write_text(text_of(made))
    for part in range(parts) if parts > 1 else ():
        text = text_of(made[part * len(made) // parts : (part + 1) * len(made) // parts])
        (folder / f"rollouts-{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def small(rng: np.random.Generator, steps: int) -> list[dict]:
    """Returns two groups of four for each step, the last of each group with alternatives."""
    return [
        rollout(rng, step, example, int(rng.integers(20, 60)), tops=5 if sibling == 3 else 0)
        for step in range(1, steps + 1)
        for example in (step, step + 100)
        for sibling in range(4)
    ]


def text_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
