"""Writes the model card of a finished run, and pushes its model to the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from sdjax import config
from sdjax.analysis import markdown
from sdjax.errors import UserError
from sdjax.io import hub
from sdjax.io.files import write_text
from sdjax.io.storage import Folder
from sdjax.models.files import resolve

CARD = "README.md"
HUB_DATA = r"hf://datasets/([\w.-]+/[\w.-]+)"
SHARES = ("avg@", "pass@", "maj@")
"""How the names of the figures begin that have an interval."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a model goes. `field` is the config's field with the name, for messages."""

    name: str
    private: bool
    field: str = "checkpoint.push_to"

    @classmethod
    def of(cls, cfg: config.Checkpoint) -> Destination:
        """Returns the target of a run."""
        return cls(name=cfg.push_to, private=cfg.push_private)

    def check(self) -> None:
        """Raises UserError if there is a name and the hub's token cannot push there."""
        if self.name:
            try:
                hub.check_owner(self.name)
            except UserError as error:
                raise UserError(f"{self.field} is {self.name!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a card tells about a run: its config as in config.json, and the step of the model.

    `history` has the evaluations as in evaluations.json. `examples` counts what it trains on.
    `start` is the last of the starts in run.json.
    """

    public: Mapping[str, Any]
    step: int
    history: Sequence[Mapping[str, Any]] = ()
    examples: str = ""
    start: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Any, step: int) -> Provenance:
        """Reads the run directory `run`; a file that is not there counts as empty.

        Raises UserError for a damaged one.
        """

        def read(name: str, otherwise: Any) -> Any:
            file = run / name
            try:
                return json.loads(file.read_text()) if file.exists() else otherwise
            except ValueError as error:
                raise UserError(f"{file}: not JSON ({error}); mend or remove it") from None

        record = read("run.json", {})
        rows = re.match(r"\d+(?= rows)", record.get("fingerprints", {}).get("data", ""))
        return cls(
            public=read("config.json", {}),
            step=step,
            history=[e for e in read("evaluations.json", []) if e["step"] <= step],
            examples=rows[0] if rows else "",
            start=(record.get("starts") or [{}])[-1],
        )

    @property
    def base(self) -> str | None:
        """The hub id of the model that the run started from; None if it is not on the hub."""
        model = self.public["model"]
        path = model["path"]
        local = path.startswith(resolve.PACKAGE) or Path(path).expanduser().exists()
        return None if local or model.get("init_seed") is not None else path


def publish_run(
    checkpoint: config.Checkpoint, folder: Folder, step: int, *, adapters: bool
) -> None:
    """Publishes the model that a training or a finetuning has exported, as `publish` does.

    `folder` is the run directory, and `step` that of the model.
    """
    to, run = Destination.of(checkpoint), Provenance.of(folder.local, step)
    publish(to, run, folder.local / "model", folder.place / "model", adapters=adapters)


def publish(
    to: Destination, run: Provenance, exported: Path, place: Any, *, adapters: bool
) -> None:
    """Writes README.md beside exported weights, then pushes them; does nothing without a name.

    Call it on every process; the first one does the work. Prints a line if there is no token.

    Args:
        to: The repository.
        run: The run that made the model.
        exported: The exported model. Its adapters, if any, are in exported_adapter beside it.
        place: How messages name this folder; it may be in a bucket.
        adapters: Whether the run has trained adapters.

    Raises:
        UserError: The hub refuses. The exported folders are whole then.
    """
    if not to.name or jax.process_index() != 0:
        return
    folders = {False: exported}
    if adapters:
        folders[True] = exported.with_name(f"{exported.name}_adapter")
    for of_adapters, folder in folders.items():
        write_text(folder / CARD, card(run, to.name, adapters=of_adapters))
    pushed = adapters and run.base is not None
    shown = str(place) + ("_adapter" if pushed else "")
    by_hand = f"`hf upload {to.name} {shown}` pushes it"
    try:
        message = f"sdjax: step {run.step}"
        url = hub.push(folders[pushed], to.name, private=to.private, message=message)
    except UserError as error:
        raise UserError(
            f"{to.field} is {to.name!r}: not pushed: {error}; the model is whole in {shown}: "
            f"{by_hand}"
        ) from None
    if url is None:
        print(f"hub: {to.name}: not pushed: no token (HF_TOKEN, `hf auth login`); {by_hand}")
    else:
        print(f"hub: {shown} is in {url}")


def card(run: Provenance, name: str, *, adapters: bool) -> str:
    """Returns the text of a model card in Markdown, with the hub's fields at its top.

    `name` is OWNER/NAME of the repository. `adapters` says whether the folder holds adapters for
    PEFT, not a whole model.
    """
    from huggingface_hub import ModelCardData

    public = _without_folders(run.public)
    fields = ModelCardData(
        base_model=run.base,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["sdjax", _method(public)[0]],
        datasets=sorted({*re.findall(HUB_DATA, json.dumps(public))}) or None,
    )
    parts = [
        f"---\n{fields.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        markdown.table(["", ""], list(_facts(run, public))),
        *_figures(run.history),
        f"## Use\n\n{_use(name, adapters=adapters)}",
        f"## Config\n\n{_fenced(json.dumps(public, indent=2), 'json')}",
    ]
    return "\n\n".join(parts) + "\n"


def _method(public: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name of the method of a config, and what it does."""
    if public["class"] == "SFT":
        return "sft", "finetuning on conversations"
    share = public["loss"]["distillation"]
    teacher = public["teacher"].get("path") or public["teacher"]["kind"]
    kind = f"divergence {public['loss']['divergence']}, teacher {teacher}"
    sdpo = f"SDPO (arXiv:2601.20802), {kind}"
    if share == 1:
        return "sdpo", sdpo
    if share == 0:
        return "grpo", f"GRPO, advantage {public['policy']['advantage']}"
    return "sdpo", f"{share:g} x {sdpo}, and {1 - share:g} x GRPO"


def _facts(run: Provenance, public: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields rows that say how the model was made; `public` is the config without folders."""
    model, made = public["model"], run.start
    revision = f", revision {model['revision']}" if model.get("revision") else ""
    yield ["base model", f"{model['path']}{revision}"]
    yield ["method", _method(public)[1]]
    if public["class"] == "SFT":
        yield ["data", f"{public['source']}: {run.examples} conversations"]
        yield ["steps", f"{run.step} updates of {public['batch']} conversations"]
    else:
        task, rollout = public["task"], public["rollout"]
        named = ", ".join(
            f"{name} {value}"
            for name, value in task.items()
            if name in ("name", "train", "source") and value
        )
        of = f" ({named})" if named else ""
        yield ["data", f"{task['class']}{of}: {run.examples} training examples"]
        each = f"{rollout['prompts_per_step']} questions x {rollout['group_size']} completions"
        yield ["steps", f"{run.step} of {each}"]
    yield ["learning rate", f"{public['optim']['lr']:g}"]
    lora = public.get("lora", {})
    if lora.get("rank"):
        yield ["adapters", f"rank {lora['rank']}, alpha {lora['alpha']:g}"]
    if made:
        commit = f" (commit {made['commit'][:12]})" if made["commit"] else ""
        device = f"{made['devices']} x {made['device']}"
        when = made["time"].partition("T")[0]
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
