"""The configs that a config file can bind, and the sections that they hold.

A config file is Python that binds `config` to one of the job configs (`Job`). `--help` prints the
docstring under each field.
"""

from sdjax.config.checks import require as require
from sdjax.config.evaluate import Evaluate as Evaluate
from sdjax.config.sections.loss import Loss as Loss
from sdjax.config.sections.loss import Policy as Policy
from sdjax.config.sections.model import Lora as Lora
from sdjax.config.sections.model import Mesh as Mesh
from sdjax.config.sections.model import Model as Model
from sdjax.config.sections.model import Shape as Shape
from sdjax.config.sections.optim import Optim as Optim
from sdjax.config.sections.rollout import Eval as Eval
from sdjax.config.sections.rollout import Rollout as Rollout
from sdjax.config.sections.rollout import Sampling as Sampling
from sdjax.config.sections.rollout import Server as Server
from sdjax.config.sections.run import Alarm as Alarm
from sdjax.config.sections.run import Checkpoint as Checkpoint
from sdjax.config.sections.run import Data as Data
from sdjax.config.sections.run import Log as Log
from sdjax.config.sections.run import TaskConfig as TaskConfig
from sdjax.config.sections.teacher import Reprompt as Reprompt
from sdjax.config.sections.teacher import Teacher as Teacher
from sdjax.config.study import SFT as SFT
from sdjax.config.study import Study as Study
from sdjax.config.study import Traces as Traces
from sdjax.config.tools import Bench as Bench
from sdjax.config.tools import Export as Export
from sdjax.config.tools import Plan as Plan
from sdjax.config.tools import Prepare as Prepare
from sdjax.config.tools import Report as Report
from sdjax.config.tools import Sweep as Sweep
from sdjax.config.train import Train as Train
from sdjax.config.values import flat as flat
from sdjax.config.values import to_dict as to_dict
from sdjax.config.values import to_public as to_public
from sdjax.errors import UserError as UserError

Job = Train | Evaluate | Export | Prepare | Traces | Bench | Report | SFT | Study | Plan | Sweep
