"""The sections of a run: its task, data, logs, alarms and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sdjax import own_functions
from sdjax.config.checks import (
    require,
    require_finite,
    require_one,
    require_repository,
    require_seed,
)
from sdjax.config.sections.judge import Judge
from sdjax.own_functions import Function

OWN_REWARDS = ("grader", "judge")
"""The rewards that are no functions: the task's own grader, and the section `judge`."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The fields that every task has. Each task adds its own in sdjax/tasks/NAME.py or in a config
    file."""

    seed: int = 0
    """Seed of generated questions and of subsets."""
    held_out: int = 200
    """Number of held-out examples; they never occur in training. 0: none, so that training runs
    without evaluations."""
    reward: Function = ""
    """A function whose value trains in place of the grader's reward: itself in a config file, or
    its name, module:function or FILE.py:function. Or judge. docs/how-to/own-reward.md says what the
    function gets. If empty, the grader's reward trains. The grader still decides what is
    correct."""
    rewards: dict[Function, float] = field(default_factory=dict)
    """Several such rewards in place of `reward`, each with its weight; grader stands for the
    grader's own. Their weighted sum trains."""
    reward_timeout_s: float = 10.0
    """Seconds that a call of an own function may take."""
    on_reward_error: Literal["stop", "zero"] = "stop"
    """What happens where an own function raises or is late, or the judge gives no score. stop: the
    run ends. zero: this part of the reward is 0, and the completion is not correct by it."""
    judge: Judge = field(default_factory=Judge)
    """The model behind a server that gives the reward `judge`."""
    keep_columns: bool = False
    """Keep all columns of the rows with their questions, also where no own function reads them.
    teacher.route does so by itself."""

    def __post_init__(self) -> None:
        name = own_functions.name_of(self.reward, "task.reward")
        object.__setattr__(self, "reward", name)
        object.__setattr__(self, "rewards", own_functions.names_of(self.rewards, "task.rewards"))
        # Some subclasses have this field: the name of a rule, or a grader of the user.
        if callable(grader := getattr(self, "grader", "")):
            object.__setattr__(self, "grader", own_functions.name_of(grader, "task.grader"))
        require_finite(self, "task.")
        require(self.held_out >= 0, "task.held_out", self.held_out, "must not be negative")
        require_seed("task.seed", self.seed)
        self._check_rewards()

    def _check_rewards(self) -> None:
        """Raises UserError for rewards that no run can compute."""
        require(
            not (self.reward and self.rewards),
            "task.rewards",
            self.rewards,
            "give either task.reward or task.rewards",
        )
        where = "task.reward" if self.reward else "task.rewards"
        for name in self.all_rewards():
            require(
                name in OWN_REWARDS or own_functions.is_named(name),
                where,
                name,
                "must be module:function or FILE.py:function, such as my_rewards:brevity, or one "
                f"of {', '.join(OWN_REWARDS)}",
            )
        judged = "judge" in self.all_rewards()
        require(
            judged or self.judge.url is None,
            "task.judge.url",
            self.judge.url,
            "needs task.reward judge, or judge in task.rewards",
        )
        for part in ("url", "model") if judged else ():
            value = getattr(self.judge, part)
            require(bool(value), f"task.judge.{part}", value, f"the reward judge needs a {part}")
        limit = self.reward_timeout_s
        require(limit > 0, "task.reward_timeout_s", limit, "must be positive")

    def all_rewards(self) -> dict[str, float]:
        """Returns the rewards by name with their weights; empty where the grader's trains."""
        return {self.reward: 1.0} if self.reward else self.rewards

    def keeps_columns(self) -> bool:
        """Returns whether a reward, a grader of the user or a teacher's route reads the columns."""
        named = own_functions.is_named(str(getattr(self, "grader", "")))
        return self.keep_columns or named or bool(self.all_rewards().keys() - {"grader"})


@dataclass(frozen=True, kw_only=True)
class Data:
    """Order, filtering and batching of the training examples."""

    seed: int = 0
    """Seed of the order in which examples are visited."""
    limit: int = 0
    """Number of training examples used, taken from the first, so that a smaller set is part of a
    larger one. 0 uses all. If a step has more prompts than there are examples, some examples appear
    in several groups (arXiv:2603.24472 section 6.2)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens at a row that cannot be read. error: the run ends. skip: the row is counted and
    listed."""
    on_overlong: Literal["skip", "error"] = "skip"
    """What happens at a prompt over max_prompt_tokens. skip: it is left out, counted and reported.
    error: the run ends."""

    def __post_init__(self) -> None:
        require(self.limit >= 0, "data.limit", self.limit, "must not be negative; 0 uses all")
        require_seed("data.seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes and shows while it runs."""

    to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ("tensorboard",)
    """Trackers that get the metrics, the config and some answers of each evaluation too.
    metrics.jsonl has the metrics in any case. Each but tensorboard is an extra to install, such as
    'sdjax[wandb]'."""
    project: str = ""
    """Project of wandb and trackio, experiment of mlflow. If empty, the one that WANDB_PROJECT or
    MLFLOW_EXPERIMENT_NAME names, or else sdjax."""
    samples: int = 4
    """Questions of each held-out set whose first answer goes to the trackers at each evaluation,
    with its reward. 0 sends none."""
    sink: Callable[..., object] | None = None
    """A function that is called with each line of metrics: sink(step, metrics). Set it in the
    config file. What it raises is a warning."""
    show_every: int = 10
    """Steps between two completions on the terminal, one right and one wrong; the first step shows
    them too. 0 shows none."""
    rollouts: bool = True
    """Write every completion as a line of rollouts.jsonl."""
    rollouts_per_step: int = 64
    """Completions per step that are written in full: reprompt, and for each token its text,
    log-probabilities and entropies. Correct and wrong ones alternate as long as both last. All
    others have text and grade only. 0 writes all in full. A token takes about 55 bytes in full and
    3 otherwise."""
    alternatives: int = 5
    """Likeliest tokens of student and teacher kept at each token of some completions; 0 keeps none.
    They cost one more forward pass over these completions."""
    alternatives_of: int = 4
    """Completions per step that keep alternatives, chosen among those written in full; 0 keeps
    none."""
    alternatives_tokens: int = 2048
    """First tokens of a completion that keep alternatives. Each adds about 280 bytes."""
    progress: bool = True
    """Show a progress bar on the terminal."""

    def __post_init__(self) -> None:
        for name in (
            *("rollouts_per_step", "alternatives", "alternatives_of", "alternatives_tokens"),
            *("samples", "show_every"),
        ):
            value = getattr(self, name)
            require(value >= 0, f"log.{name}", value, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """When an evaluation during training prints a warning: it is compared with the run's first
    evaluation."""

    epistemic_drop: float = 0.5
    """Warns if the rate of epistemic words per 1,000 tokens of an evaluation falls by more than
    this share; 0 is off."""
    ood_drop: float = 0.2
    """Warns if the score (avg@k) of an out-of-domain task falls by more than this share; 0 is
    off."""
    fork_drop: float = 0.5
    """Warns if the fork rate of an evaluation falls by more than this share; 0 is off. Only
    eval.fork_rate measures it."""
    stop: bool = False
    """End the run at a warning as at its last step: with a checkpoint, an export and exit code
    0."""
    teacher_off: bool = False
    """Switch the teacher off at a warning: from the next step on, the run learns as with
    loss.distillation 0. A resumed run stays so."""

    def __post_init__(self) -> None:
        require_finite(self, "alarm.")
        for name in ("epistemic_drop", "ood_drop", "fork_drop"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"alarm.{name}", value, "must lie in [0, 1]; 0 is off")
        require(
            not (self.stop and self.teacher_off),
            "alarm.teacher_off",
            self.teacher_off,
            "must be False with alarm.stop, which ends the run at the same warning",
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which checkpoints and exports of a run are kept."""

    every: int = 50
    """Steps between checkpoints. 0 keeps none; a run that a signal stops then cannot be resumed."""
    keep: int = 2
    """Number of newest checkpoints kept. With 1, a damaged checkpoint leaves nothing to resume
    from."""
    keep_best: int = 0
    """Number of further checkpoints kept: those with the best `best_metric`. 0 keeps none."""
    best_metric: str = ""
    """keep_best: a metric of the evaluations, such as eval/avg@4."""
    best_is: Literal["highest", "lowest"] = "highest"
    """keep_best: whether the highest or the lowest value of best_metric is best."""
    export: bool = True
    """Write the final model as a Hugging Face folder."""
    export_dtype: Literal["source", "bfloat16", "float16", "float32"] = "source"
    """Type of the exported weights. source: that of most weights of the model that the run starts
    from; bfloat16 for quantised ones. Adapters are exported as float32 for source."""
    push_to: str = ""
    """Repository of the Hugging Face hub, OWNER/NAME, that gets the final model with a model card.
    With adapters whose base is on the hub, it gets the adapters. Without a token of the hub the
    card is written, and nothing is pushed."""
    push_private: bool = True
    """push_to: whether a repository that does not exist yet becomes private."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "must not be negative")
        require_one("checkpoint.keep", self.keep)
        require(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "must not be negative")
        require(
            self.keep_best == 0 or bool(self.best_metric),
            "checkpoint.best_metric",
            self.best_metric,
            "must name what checkpoint.keep_best compares, such as eval/avg@4",
        )
        require_repository("checkpoint.push_to", self.push_to)
        require(
            self.export or not self.push_to,
            "checkpoint.export",
            self.export,
            "must be True with checkpoint.push_to, which pushes the exported model",
        )
