"""The config of the train job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sdjax.config.checks import require, require_finite, require_names, require_seed
from sdjax.config.sections.harness import Harness
from sdjax.config.sections.loss import Loss, Policy
from sdjax.config.sections.model import Lora, Mesh, Model
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.rollout import Eval, Rollout
from sdjax.config.sections.run import Alarm, Checkpoint, Data, Log, TaskConfig
from sdjax.config.sections.target import SOLUTION, STUDENT, Target
from sdjax.config.sections.teacher import Reprompt, Teacher


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model on its own completions: SDPO, GRPO or a blend of both."""

    out: str
    """Run directory: resolved config, metrics, rollouts, checkpoints, exported model."""
    task: TaskConfig
    out_of_domain: dict[str, TaskConfig] = field(default_factory=dict)
    """Other tasks whose held-out examples are evaluated too. Their keys name their metrics:
    ood/NAME/..."""
    steps: int = 100
    """Number of training steps."""
    seed: int = 0
    """Seed of sampling."""
    resume: bool = False
    """Continue from the newest complete checkpoint in `out`; without one, start from the
    beginning."""
    allow: tuple[str, ...] = ()
    """With resume: fields, or whole sections, in which the run may differ from here on, such as
    optim.lr or eval. Also data, held_out, tokenizer, template, weights, revision and teacher, which
    stand for what the run has read. See docs/command-line.md."""
    replay: str | None = None
    """Repeat one saved update: OUT/nonfinite/STEP.npz, written by optim.most_skipped. Prints its
    loss, its gradient's norm and the first value that is not finite."""
    profile: str | None = None
    """Directory for a profiler trace of the second and third step; the first one compiles. None
    writes no trace."""
    lexicon: str = "paper"
    """Epistemic words that are counted. paper: substrings, as in arXiv:2603.24472. word: whole
    words with inflections. Or a JSON file {"word": ["form", ...], ...}, counted as whole words.
    Metrics epistemic/... and loss.token_weights use the tokens of these words."""
    on_step: Callable[..., object] | None = None
    """A function that is called after each step: on_step(step, metrics). If it returns True or
    "stop", the run ends as at its last step. Set it in the config file."""
    on_evaluation: Callable[..., object] | None = None
    """The same for evaluations: on_evaluation(step, metrics), with the metrics of the
    evaluation."""
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    rollout: Rollout = field(default_factory=Rollout)
    reprompt: Reprompt = field(default_factory=Reprompt)
    contexts: dict[str, Reprompt] = field(default_factory=dict)
    """Further contexts of the teacher by name, for target.weights, such as {"careless":
    Instruction(instruction="...")}. Also other settings for those that have a name already:
    unrelated, wrong, reference, plain and feedback (docs/how-to/contexts.md)."""
    target: Target = field(default_factory=Target)
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    policy: Policy = field(default_factory=Policy)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=Eval)
    lm_eval: Harness = field(default_factory=Harness)
    alarm: Alarm = field(default_factory=Alarm)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        require_finite(self)
        require_names("out_of_domain", self.out_of_domain)
        require_names("contexts", self.contexts)
        for name in (STUDENT, SOLUTION):
            remedy = "is a name of its own: the prompt" if name == STUDENT else "is reprompt"
            require(name not in self.contexts, "contexts", name, f"{remedy}; give another name")
        require_seed("seed", self.seed)
        scale = self.teacher.adapter_scale
        need = "needs adapters: set lora.rank over 0"
        require(scale == 1 or self.lora.rank > 0, "teacher.adapter_scale", scale, need)
        require(
            self.rollout.server.url is None or not self.lm_eval.tasks,
            "lm_eval.tasks",
            self.lm_eval.tasks,
            "needs the local sampler; set rollout.server.url None",
        )
        self.eval.check_server(self.rollout.server)
        if self.checkpoint.keep_best:
            every = self.eval.every
            require(
                every > 0 and self.checkpoint.every % every == 0,
                "checkpoint.every",
                self.checkpoint.every,
                f"must be a multiple of eval.every ({every}) with checkpoint.keep_best: each "
                "checkpoint needs its evaluation",
            )
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require(
            self.rollout.prompts_per_step % self.optim.minibatches == 0,
            "optim.minibatches",
            self.optim.minibatches,
            f"must divide rollout.prompts_per_step ({self.rollout.prompts_per_step})",
        )
        completions = self.rollout.prompts_per_step * self.rollout.group_size
        self.optim.check_update(completions // self.optim.minibatches)
        require(
            self.loss.distillation > 0
            or self.rollout.group_size >= 2
            or self.rollout.dynamic_sampling_rounds == 0,
            "rollout.dynamic_sampling_rounds",
            self.rollout.dynamic_sampling_rounds,
            "must be 0 with rollout.group_size 1: no group's rewards can differ",
        )
        # A teacher of the student's prompt alone needs nothing to show, and no sibling.
        shows = self.loss.distillation > 0 and not self.target.is_plain
        if shows:
            self.reprompt.check_teaches()
        require(
            not self.reprompt.regenerate or self.loss.distillation > 0,
            "reprompt.regenerate",
            self.reprompt.regenerate,
            "needs loss.distillation over 0: without a teacher nobody reads the answer",
        )
        if shows and self.reprompt.demonstration not in ("solution", "none"):
            require(
                self.rollout.group_size >= 2 or self.reprompt.own_success or self.reprompt.feedback,
                "rollout.group_size",
                self.rollout.group_size,
                "needs at least 2, or no completion has a sibling to learn from",
            )
        if self.alarm.teacher_off:
            share = self.loss.distillation
            require(share > 0, "alarm.teacher_off", True, "needs loss.distillation over 0")
            self.without_teacher()  # which must be a config too

    def without_teacher(self) -> Train:
        """Returns the config that the run follows once alarm.teacher_off has had its effect."""
        return replace(
            self,
            loss=replace(self.loss, distillation=0.0),
            reprompt=replace(self.reprompt, regenerate=False),
            alarm=replace(self.alarm, teacher_off=False),
        )
