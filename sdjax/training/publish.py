"""Writes the model card of a finished run, and pushes its model to the Hugging Face hub."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.analysis import markdown
from sdjax.errors import UserError
from sdjax.io import environment, hub
from sdjax.io.files import write_text
from sdjax.io.storage import Folder
from sdjax.models.files import resolve
from sdjax.training.loaded_model import LoadedModel

CARD = "README.md"
HUB_DATA = r"hf://datasets/([\w.-]+/[\w.-]+)"
SHARES = ("avg@", "pass@", "maj@")
"""How the names of the figures begin that have an interval."""


def check(cfg: config.Checkpoint) -> None:
    """Raises UserError if the hub's token cannot push to checkpoint.push_to."""
    if cfg.push_to:
        try:
            hub.check_owner(cfg.push_to)
        except UserError as error:
            raise UserError(f"checkpoint.push_to is {cfg.push_to!r}: {error}") from None


def publish(
    cfg: config.Train | config.SFT, model: LoadedModel, folder: Folder, step: int, examples: int
) -> None:
    """Writes README.md beside the exported weights, then pushes them if checkpoint.push_to says so.

    Call it on every process; the first one does the work. Prints a line if there is no token.
    Raises UserError if the hub refuses; the exported folder is whole then.

    Args:
        cfg: The config of the run.
        model: The model that the run started from.
        folder: The run directory, with the exports and evaluations.json.
        step: The step of the exported model.
        examples: Number of training examples.
    """
    name = cfg.checkpoint.push_to
    if not name or jax.process_index() != 0:
        return
    base = _base(cfg)
    file = folder.local / "evaluations.json"
    history = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    adapters = model.cfg.lora is not None
    pushed = "model_adapter" if adapters and base is not None else "model"
    for part in ("model", "model_adapter") if adapters else ("model",):
        text = card(cfg, base, step, examples, history, adapters=part == "model_adapter")
        write_text(folder.local / part / CARD, text)
    shown = f"{folder.place}/{pushed}"
    by_hand = f"`hf upload {name} {shown}` pushes it"
    try:
        message = f"sdjax: step {step}"
        private = cfg.checkpoint.push_private
        url = hub.push(folder.local / pushed, name, private=private, message=message)
    except UserError as error:
        raise UserError(
            f"checkpoint.push_to is {name!r}: not pushed: {error}; the model is whole in {shown}: "
            f"{by_hand}"
        ) from None
    if url is None:
        print(f"hub: {name}: not pushed: no token (HF_TOKEN, `hf auth login`); {by_hand}")
    else:
        print(f"hub: {shown} is in {url}")


def card(
    cfg: config.Train | config.SFT,
    base: str | None,
    step: int,
    examples: int,
    history: Sequence[Mapping[str, Any]],
    *,
    adapters: bool,
) -> str:
    """Returns the text of a model card in Markdown, with the hub's fields at its top.

    Args:
        cfg: The config of the run; secrets are left out.
        base: The hub id of the model that the run started from; None: it is not on the hub.
        step: The step of the model.
        examples: Number of training examples.
        history: The evaluations of the run, as in evaluations.json.
        adapters: Whether the folder holds adapters for PEFT, not a whole model.
    """
    from huggingface_hub import ModelCardData

    public = _without_folders(config.to_public(cfg))
    fields = ModelCardData(
        base_model=base,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["sdjax", _method(cfg)[0]],
        datasets=sorted({*re.findall(HUB_DATA, json.dumps(public))}) or None,
    )
    title = cfg.checkpoint.push_to.rpartition("/")[2]
    parts = [
        f"---\n{fields.to_yaml()}\n---",
        f"# {title}",
        markdown.table(["", ""], list(_facts(cfg, public, step, examples))),
        *_figures(history),
        f"## Use\n\n{_use(cfg.checkpoint.push_to, adapters=adapters)}",
        f"## Config\n\n{_fenced(json.dumps(public, indent=2), 'json')}",
    ]
    return "\n\n".join(parts) + "\n"


def _base(cfg: config.Train | config.SFT) -> str | None:
    """Returns the hub id of a run's base model; None for a folder, a file or a package."""
    path = cfg.model.path
    local = path.startswith(resolve.PACKAGE) or Path(path).expanduser().exists()
    return None if local or cfg.model.init_seed is not None else path


def _method(cfg: config.Train | config.SFT) -> tuple[str, str]:
    """Returns the name of the method, and what it does."""
    if isinstance(cfg, config.SFT):
        return "sft", "finetuning on conversations"
    share = cfg.loss.distillation
    sdpo = f"SDPO (arXiv:2601.20802), divergence {cfg.loss.divergence}, teacher {cfg.teacher.kind}"
    if share == 1:
        return "sdpo", sdpo
    if share == 0:
        return "grpo", f"GRPO, advantage {cfg.policy.advantage}"
    return "sdpo", f"{share:g} x {sdpo}, and {1 - share:g} x GRPO"


def _facts(
    cfg: config.Train | config.SFT, public: Mapping[str, Any], step: int, examples: int
) -> Iterator[list[str]]:
    """Yields rows that say how the model was made."""
    made = environment.versions()
    commit = f" (commit {made['commit'][:12]})" if made["commit"] else ""
    revision = f", revision {cfg.model.revision}" if cfg.model.revision else ""
    yield ["base model", f"{public['model']['path']}{revision}"]
    yield ["method", _method(cfg)[1]]
    if isinstance(cfg, config.SFT):
        yield ["data", f"{public['source']}: {examples} conversations"]
        yield ["steps", f"{step} updates of {cfg.batch} conversations"]
    else:
        task = ", ".join(
            f"{name} {value}"
            for name, value in public["task"].items()
            if name in ("name", "train", "source") and value
        )
        kind = public["task"]["class"]
        yield ["data", f"{kind}{f' ({task})' if task else ''}: {examples} training examples"]
        rollout = cfg.rollout
        each = f"{rollout.prompts_per_step} questions x {rollout.group_size} completions"
        yield ["steps", f"{step} of {each}"]
    yield ["learning rate", f"{cfg.optim.lr:g}"]
    if isinstance(cfg, config.Train) and cfg.lora.rank:
        yield ["adapters", f"rank {cfg.lora.rank}, alpha {cfg.lora.alpha:g}"]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    when = time.strftime("%Y-%m-%d", time.gmtime())
    yield ["made", f"{when}, sdjax {made['sdjax']}{commit}, jax {made['jax']}, {device}"]


def _figures(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the section with the figures of the first and the last evaluation, if any."""
    if not history:
        return
    first, last = history[0], history[-1]
    rows = []
    sets = {"held out": last} | dict(last.get("out_of_domain", {}))
    for name, after in sets.items():
        before = first if after is last else first.get("out_of_domain", {}).get(name, {})
        for figure, value in after["accuracy"].items():
            if figure.startswith(SHARES):
                old = before.get("accuracy", {}).get(figure)
                number = str(after["accuracy"]["examples"])
                rows.append([name, number, f"{figure}, %", _share(old), _share(value)])
        for figure, *path in (
            ("mean tokens", "lengths", "mean"),
            ("words of doubt per 1,000 tokens", "epistemic", "per_1000_tokens"),
        ):
            values = [
                f"{each[path[0]][path[1]]:.1f}" if path[0] in each else ""
                for each in (before, after)
            ]
            rows.append([name, "", figure, *values])
    head = ["set", "questions", "figure", f"step {first['step']}", f"step {last['step']}"]
    figures = markdown.table(head, rows)
    yield (
        f"## Figures\n\n{figures}\n\nIn brackets are 95 % intervals. They account for the choice "
        "of questions, not for the seed of the training."
    )


def _share(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _use(name: str, *, adapters: bool) -> str:
    """Returns how to load a model of the hub."""
    auto = "AutoPeftModelForCausalLM" if adapters else "AutoModelForCausalLM"
    load = (
        f"from {'peft' if adapters else 'transformers'} import {auto}\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'messages = [{"role": "user", "content": "How many days has a leap year?"}]\n'
        "tokens = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ").to(model.device)\n"
        "answer = model.generate(**tokens, max_new_tokens=512)\n"
        "print(tokenizer.decode(answer[0]))"
    )
    served = f"vllm serve {name}"
    if adapters:
        served = f"vllm serve BASE --enable-lora --lora-modules {name.rpartition('/')[2]}={name}"
    return f"{_fenced(load, 'python')}\n\n{_fenced(served, '')}"


def _without_folders(value: Any) -> Any:
    """Returns plain values in which an absolute path of this machine is only its last part."""
    if isinstance(value, Mapping):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and re.match(r"[/~]|[A-Za-z]:\\", value) and "\n" not in value:
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _fenced(text: str, language: str) -> str:
    """Returns a block of code whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
