"""The section of the target: the distribution that the student is moved toward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdjax.config.checks import require, require_finite

STUDENT = "student"
"""The context of the student itself, the prompt. A target may read its distribution too."""
SOLUTION = "solution"
"""The context that the section `reprompt` describes."""
UNRELATED = "unrelated"
"""A solution of another question."""
WRONG = "wrong"
"""A failed completion of the question."""
REFERENCE = "reference"
"""The solution without the question."""
PLAIN = "plain"
"""The student's prompt."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The distribution that the student is moved toward, from what the teacher says in contexts.

    log target = sum over contexts j of weight_j x log p_j + constant. The default is the teacher's
    distribution after the reprompt, as in SDPO.
    """

    rule: str = field(default="context", metadata={"table": "sdjax.objectives.targets:TARGETS"})
    """A name in `sdjax.objectives.targets.TARGETS`; --help lists them. context: the distribution in
    target.context. weights: the mix of target.weights."""
    context: str = SOLUTION
    """rule=context: the context by name. "unrelated" (the solution of another question) and "plain"
    (the student's prompt) are controls."""
    weights: dict[str, float] = field(default_factory=dict)
    """rule=weights: the weight of each context by name, such as {"solution": 1, "wrong": -0.5}.
    "student" is the student's own distribution, without gradient."""
    strength: float = 1.0
    """Other rules: the size of what they add or mix, as their docstrings say."""
    support: float = 0.0
    """Entries less likely than this share of the likeliest one keep the probabilities that the
    contexts of positive weight give them. So negative weights cannot chase noise. 0 is off."""

    def __post_init__(self) -> None:
        require_finite(self, "target.")
        require(0 <= self.support <= 1, "target.support", self.support, "must lie in [0, 1]")
        need = "needs a context other than the student, with a weight that is not 0"
        taught = {n: w for n, w in self.weights.items() if n != STUDENT and w}
        require(self.rule != "weights" or bool(taught), "target.weights", self.weights, need)
        unread = f"is read with target.rule 'weights' only, not {self.rule!r}"
        require(self.rule == "weights" or not self.weights, "target.weights", self.weights, unread)
        need = "must be a context of the teacher"
        require(self.context != STUDENT, "target.context", self.context, need)

    def __hash__(self) -> int:
        weights = tuple(sorted(self.weights.items()))
        return hash((self.rule, self.context, weights, self.strength, self.support))

    @property
    def named(self) -> tuple[str, ...]:
        """The contexts that the section names for its rule."""
        return (self.context,) if self.rule == "context" else tuple(self.of_weights())

    @property
    def is_plain(self) -> bool:
        """Whether the teacher reads nothing but the student's prompt."""
        return set(self.named) - {STUDENT} == {PLAIN}

    def of_weights(self) -> Mapping[str, float]:
        """Returns the weights that are not 0."""
        return {name: float(weight) for name, weight in self.weights.items() if weight}
