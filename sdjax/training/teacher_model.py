"""Opens the models of a teacher of kind "model": checks them first, and loads weights later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax
from flax import nnx

from sdjax import config
from sdjax.config.sections.target import SOLUTION
from sdjax.errors import UserError
from sdjax.learner.state import OtherModel
from sdjax.models.files import weights
from sdjax.models.network.model_config import ModelConfig
from sdjax.models.network.transformer import Transformer
from sdjax.parallel import rules
from sdjax.teacher import contexts
from sdjax.tokenizer import PROBE, Tokenizer

FIELD = "teacher.path"


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A checked model that teaches; `load` reads its weights."""

    folder: Path
    cfg: ModelConfig
    graphdef: nnx.GraphDef
    abstract: nnx.State

    @property
    def other(self) -> OtherModel:
        """The model with abstract params, from which the state's shardings come."""
        return OtherModel(graphdef=self.graphdef, params=self.abstract)

    def load(self, mesh: jax.sharding.Mesh, shardings: OtherModel) -> OtherModel:
        """Returns the model with its stored params, where the `shardings` put them."""
        on_device = rules.param_shardings(self.abstract, mesh)
        params = weights.load(self.folder, self.cfg, on_device)
        return jax.device_put(replace(self.other, params=params), shardings)


def of_config(cfg: ModelConfig, folder: Path = Path()) -> TeacherModel:
    """Returns the model of these sizes, whose weights are in `folder`."""
    cfg = replace(cfg, frozen=True, lora=None)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    return TeacherModel(folder=folder, cfg=cfg, graphdef=graphdef, abstract=abstract)


def open_teachers(
    cfg: config.Train, student: ModelConfig, tokenizer: Tokenizer
) -> dict[str, TeacherModel]:
    """Returns the models that teach, after their checks; {} if the teacher is no other model.

    It reads configs and tokenizers, but no weights. `student` and `tokenizer` are those of the
    model that is trained. Raises UserError for a model that has not the student's vocabulary.
    """
    if cfg.teacher.kind != "model":
        return {}
    return {
        name: _open(cfg, path, _field(name), student, tokenizer)
        for name, path in cfg.teacher.paths.items()
    }


def _field(name: str) -> str:
    """Returns the config's field of the model that has this name; "" is that of the only one."""
    return f"teacher.models.{name}" if name else FIELD


def check(cfg: config.Train) -> None:
    """Raises UserError, before any model is opened, if no model can be had or none is read."""
    if cfg.teacher.kind != "model":
        return
    if not contexts.used(cfg):
        raise UserError(
            "teacher.kind is 'model': nothing reads a teacher: set loss.distillation over 0"
        )
    for name, path in cfg.teacher.paths.items():
        weights.resolve(path, cfg.teacher.revision, field=_field(name))


def _open(
    cfg: config.Train, path: str, field: str, student: ModelConfig, tokenizer: Tokenizer
) -> TeacherModel:
    """Returns the model that `field` names by its `path`; see `open_teachers` for the others.

    Args:
        cfg: The config of the training.
        path: The model.
        field: The config's field that names it, for messages.
        student: The sizes of the model that is trained.
        tokenizer: Its tokenizer.
    """
    folder = weights.resolve(path, cfg.teacher.revision, field=field)
    found = weights.read_config(
        folder,
        compute_dtype=student.compute_dtype,
        remat=student.remat,
        attention=student.attention,
        context=cfg.model.context,
    )
    _check_tokenizer(folder, field, tokenizer)
    _check_rows(folder, field, found, student)
    weights.check(folder, found)
    _check_contexts(cfg, field, found)
    return of_config(found, folder)


def _check_tokenizer(folder: Path, field: str, student: Tokenizer) -> None:
    """Raises UserError unless the teacher gives every token the same number as the student."""
    other = Tokenizer.read(folder)
    ours, theirs = (
        {i: token for token, i in each.base.get_vocab().items()} for each in (student, other)
    )
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise UserError(
                f"{field}: {folder}: its tokenizer is not the student's: token {i} is "
                f"{_said(theirs.get(i))}, and {_said(ours.get(i))} in the student's; name a model "
                "of the same vocabulary"
            )
    of_probe = [each.base.encode(PROBE, add_special_tokens=False) for each in (student, other)]
    if of_probe[0] != of_probe[1]:
        raise UserError(
            f"{field}: {folder}: its tokenizer is not the student's: it has the same tokens, but "
            "cuts texts in other places; name a model of the same tokenizer"
        )


def _said(token: str | None) -> str:
    return "missing" if token is None else repr(token)


def _check_rows(folder: Path, field: str, found: ModelConfig, student: ModelConfig) -> None:
    """Raises UserError if the teacher's embedding has fewer rows than the student's.

    Both may be padded beyond the tokenizer's tokens. The further rows of a teacher are left out.
    """
    if found.vocab_size < student.vocab_size:
        raise UserError(
            f"{field}: {folder}: config.json gives it {found.vocab_size} tokens, fewer than the "
            f"student's {student.vocab_size}: it says nothing of the others; name a teacher that "
            "has as many"
        )


def _check_contexts(cfg: config.Train, field: str, found: ModelConfig) -> None:
    """Raises UserError if a context and a completion exceed the teacher's positions."""
    completion = cfg.rollout.max_completion_tokens
    for name, section in contexts.used(cfg).items():
        shows = section.demonstration != "none" or section.feedback or section.instruction
        limit = "reprompt.max_tokens" if name == SOLUTION else f"contexts.{name}.max_tokens"
        longest = section.max_tokens
        if not shows:
            limit, longest = "rollout.max_prompt_tokens", cfg.rollout.max_prompt_tokens
        if longest + completion > found.max_positions and not section.beyond_context:
            raise UserError(
                f"{limit} is {longest}: with {completion} completion tokens it exceeds the context "
                f"of the teacher ({field}), {found.max_positions}; lower either"
            )
