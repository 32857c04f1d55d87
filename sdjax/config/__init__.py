"""The public configs: one class per job, and the sections that these classes hold.

A config file is Python that binds `config` to an instance of one of the `Job` classes. `--help`
prints the docstring under each field; docs/reference/config.md lists all of them.
"""

from sdjax.config.checks import require
from sdjax.config.evaluate import Evaluate
from sdjax.config.sections.harness import Harness
from sdjax.config.sections.judge import Judge
from sdjax.config.sections.loss import Loss, Policy
from sdjax.config.sections.model import Lora, Mesh, Model, Shape
from sdjax.config.sections.optim import Optim
from sdjax.config.sections.rollout import Eval, Rollout, Sampling, Server
from sdjax.config.sections.run import Alarm, Checkpoint, Data, Log, TaskConfig
from sdjax.config.sections.target import Target
from sdjax.config.sections.teacher import (
    Demonstration,
    Feedback,
    Instruction,
    Plain,
    Reprompt,
    Teacher,
    WithoutQuestion,
)
from sdjax.config.study import SFT, Study, Traces
from sdjax.config.tools import Bench, Export, Plan, Preflight, Prepare, Report, Sweep
from sdjax.config.train import Train
from sdjax.config.values import flat, to_dict, to_public
from sdjax.errors import UserError

Job = (
    Train
    | SFT
    | Study
    | Sweep
    | Evaluate
    | Report
    | Export
    | Prepare
    | Traces
    | Bench
    | Plan
    | Preflight
)
"""The config of one job; a config file binds `config` to an instance of one of these."""

# fmt: off
__all__ = [  # noqa: RUF022 (in groups)
    # jobs
    "Job", "Train", "SFT", "Study", "Sweep", "Evaluate", "Report", "Export", "Prepare", "Traces",
    "Bench", "Plan", "Preflight",
    # sections of a job's config
    "TaskConfig", "Model", "Lora", "Shape", "Mesh", "Data", "Sampling", "Rollout", "Eval",
    "Harness", "Server", "Judge", "Reprompt", "Demonstration", "WithoutQuestion", "Feedback",
    "Plain", "Instruction", "Target", "Teacher", "Loss", "Policy", "Optim", "Log", "Alarm",
    "Checkpoint",
    # checks, and configs as plain values
    "require", "UserError", "flat", "to_dict", "to_public",
]
# fmt: on
