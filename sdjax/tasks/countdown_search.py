"""Searches for an expression that reaches a target, and words the search as a trace.

A trace reads like the notes of a person: try a step, try what is left, see that it fails, go back.
Every random choice comes from the `random.Random` that the caller passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

# Every value of a search lies in 0..LIMIT, because each must be one token of a small tokenizer.
LIMIT = 99
OPERATIONS = "+-*/"
# Below the first step, a search tries this many steps and then goes back to the first.
WIDTH = 3
OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Term:
    """A value and the expression that gives it."""

    value: int
    text: str
    atomic: bool = True

    def inner(self) -> str:
        """Returns the expression as part of a larger one."""
        return self.text if self.atomic else f"( {self.text} )"


@dataclass(frozen=True)
class Step:
    """A combination of two terms into `result`. The `others` are the unused terms."""

    line: str  # such as "3 + 4 = 7"
    result: Term
    others: tuple[Term, ...]

    @property
    def left(self) -> tuple[Term, ...]:
        """Returns the terms after the step."""
        return (self.result, *self.others)


def terms(numbers: Sequence[int]) -> tuple[Term, ...]:
    """Returns the numbers as terms."""
    return tuple(Term(n, str(n)) for n in numbers)


def results(a: int, b: int, operations: str = OPERATIONS) -> list[tuple[str, int]]:
    """Returns the (operation, value) pairs of a >= b with whole values in 0..LIMIT.

    Division by 1 is left out.
    """
    found = []
    if "+" in operations and a + b <= LIMIT:
        found.append(("+", a + b))
    if "-" in operations:
        found.append(("-", a - b))
    if "*" in operations and a * b <= LIMIT:
        found.append(("*", a * b))
    if "/" in operations and b > 1 and a % b == 0:
        found.append(("/", a // b))
    return found


def steps(left: Sequence[Term], operations: str = OPERATIONS) -> Iterator[Step]:
    """Yields every step on these terms. In each, the larger value stands first."""
    for i, j in itertools.combinations(range(len(left)), 2):
        big, small = sorted((left[i], left[j]), key=lambda t: -t.value)
        others = tuple(t for k, t in enumerate(left) if k not in (i, j))
        for operation, value in results(big.value, small.value, operations):
            text = f"{big.inner()} {operation} {small.inner()}"
            line = f"{big.value} {operation} {small.value} = {value}"
            yield Step(line, Term(value, text, atomic=False), others)


def reaches(numbers: Sequence[int], target: int, operations: str = OPERATIONS) -> bool:
    """Returns whether steps with these operations lead to the target."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        big, small = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for _, value in results(big, small, operations):
            if reaches([value, *rest], target, operations):
                return True
    return False


def solutions(
    left: Sequence[Term], target: int, operations: str = OPERATIONS
) -> Iterator[tuple[Step, ...]]:
    """Yields every sequence of steps whose only remaining term is the target."""
    for step in steps(left, operations):
        if len(step.left) == 1:
            if step.result.value == target:
                yield (step,)
        else:
            for rest in solutions(step.left, target, operations):
                yield (step, *rest)


@dataclass(frozen=True)
class Voice:
    """The wording of a trace. `doubt` is the share of its steps that express doubt."""

    doubt: float = 0.75

    def attempt(self, line: str, rng: Random) -> str:
        """Returns the words for trying a step."""
        return self._one_of(rng, ATTEMPT, PLAIN_ATTEMPT).format(line=line)

    def failure(self, value: int, target: int, rng: Random) -> str:
        """Returns the words for a value that is not the target."""
        size = "small" if value < target else "big"
        words = self._one_of(rng, FAILURE, PLAIN_FAILURE)
        return words.format(value=value, target=target, size=size)

    def found(self, lines: Sequence[str], rng: Random) -> str:
        """Returns the words for a solution found in a search."""
        if rng.random() < self.doubt:
            return f"Let me check: {', '.join(lines)}. Yes."
        return "Yes."

    def _one_of(self, rng: Random, doubtful: Sequence[str], plain: Sequence[str]) -> str:
        return rng.choice(doubtful if rng.random() < self.doubt else plain)


# The phrases contain each of the ten epistemic words of arXiv:2603.24472.
ATTEMPT = (
    "Maybe {line}",
    "Perhaps {line}",
    "Alternatively, {line}",
    "It might be {line}",
    "Most likely {line}",
    "Let me check {line}",
)
PLAIN_ATTEMPT = ("Try {line}", "Next {line}", "First {line}")
FAILURE = (
    "Hmm, not {target}.",
    "Wait, that gives {value}, not {target}.",
    "That seems too {size}.",
    "Actually no.",
    "Hmm, too {size}.",
)
PLAIN_FAILURE = ("No.", "Not {target}.", "Too {size}.")
GIVE_UP = ("I am not sure. Perhaps this.", "Maybe it is this.", "I give up.")


@dataclass(frozen=True)
class Search:
    """The sentences of a search and the steps with which it ended."""

    lines: tuple[str, ...]
    path: tuple[Step, ...]  # the steps to the last value that was tried
    solved: bool


def search(numbers: Sequence[int], target: int, patience: int, voice: Voice, rng: Random) -> Search:
    """Runs a depth-first search in random order; it ends after `patience` failures."""
    lines: list[str] = []
    last: tuple[Step, ...] = ()
    failures = 0

    def descend(left: tuple[Term, ...], path: tuple[Step, ...]) -> bool:
        nonlocal last, failures
        choices = list(steps(left))
        rng.shuffle(choices)
        if len(left) > 2 and len(path) > 0:
            choices = choices[:WIDTH]
        for step in choices:
            if len(step.left) > 1:
                values = " ".join(str(t.value) for t in step.left)
                lines.append(f"{voice.attempt(step.line, rng)}, left {values}.")
                if descend(step.left, (*path, step)):
                    return True
            else:
                last = (*path, step)
                if step.result.value == target:
                    lines.append(f"{step.line}.")
                    return True
                failures += 1
                words = voice.failure(step.result.value, target, rng)
                lines.append(f"{step.line}. {words}")
            if failures >= patience:
                return False
        return False

    solved = descend(terms(numbers), ())
    if solved:
        lines.append(voice.found([s.line for s in last], rng))
    return Search(tuple(lines), last, solved)


def trace(lines: Sequence[str], path: Sequence[Step]) -> str:
    """Returns a whole trace: the thinking, and the answer to which the path leads."""
    return f"{OPEN} {' '.join(lines)} {CLOSE}\n{stated(path)}"


def stated(path: Sequence[Step]) -> str:
    """Returns the line that states the answer to which a path leads."""
    return f"Answer: {path[-1].result.text}"


def direct(path: Sequence[Step]) -> str:
    """Returns a trace without search or doubt."""
    return trace(direct_lines(path), path)


def direct_lines(path: Sequence[Step]) -> list[str]:
    """Returns one sentence for each step of a solution."""
    lines = []
    for step in path:
        values = " ".join(str(t.value) for t in step.left)
        lines.append(f"{step.line}, left {values}." if len(step.left) > 1 else f"{step.line}.")
    return lines
