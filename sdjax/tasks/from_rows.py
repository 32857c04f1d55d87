"""What the tasks that read rows share: names of columns, the system prompt and the held-out set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sdjax import config, own_functions
from sdjax.data import messages
from sdjax.data.rows import (
    RowError,
    Skipped,
    answer_field,
    checked_text,
    columns,
    distinct,
    field,
    split,
    unseen,
)
from sdjax.errors import UserError
from sdjax.graders import grader, own
from sdjax.graders.answer.regions import last_boxed
from sdjax.graders.workers.grade_batch import Grader
from sdjax.records import Example, Message

Read = Callable[[str, str], tuple[list[Example], tuple[Skipped, ...]]]


@dataclass(frozen=True, kw_only=True)
class RowTask(config.TaskConfig):
    """The fields of every task that reads rows with a question and an answer."""

    question: str = ""
    """Column of the question: a text or a list of messages. If empty, the first that a row has of
    the columns that the task knows."""
    answer: str = ""
    """Column of the answer, or a path such as reward_model.ground_truth. If empty, the usual
    one."""
    system: str = ""
    """System prompt of the rows that have none in a column `system` or in their messages. If empty,
    there is none."""

    RULES: ClassVar[tuple[str, ...]] = ()
    """The rules of the package that the field `grader` of a subclass may name."""

    if TYPE_CHECKING:
        grader: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.RULES:
            own_functions.check_rule(self.grader, self.RULES)

    def task_grader(self, **options: Any) -> Grader:
        """Returns the grader that the field `grader` names; `options` are those of its rule."""
        return own_or_rule(self, self.grader, **options)

    def prompt(self, row: dict[str, Any], otherwise: Sequence[str]) -> tuple[Message, ...]:
        """Returns the messages of a row's prompt, whose column is `question` or in `otherwise`."""
        return messages.prompt(row, self.question, otherwise, system=self.system)

    def answer_path(self, row: dict[str, Any], usual: str = "answer") -> str:
        """Returns the column or path of the answer; raises RowError for a row without `usual`."""
        if not self.answer and usual.partition(".")[0] not in row:
            raise RowError(
                f"field '{usual}' is missing (the columns are {columns(row)}): name the answer's "
                "column with task.answer"
            )
        return self.answer or usual

    def columns(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns all columns of a row as JSON values, if a reward or a grader reads them."""
        return json_values(dict(row)) if self.keeps_columns() else {}


def own_or_rule(cfg: config.TaskConfig, name: str, **options: Any) -> Grader:
    """Returns the grader of a rule with its options, or of a function of the user."""
    if not own_functions.is_named(name):
        return grader(name, **options)
    stop = cfg.on_reward_error == "stop"
    return own.grader(name, limit_s=cfg.reward_timeout_s, stop=stop)


def json_values(value: Any) -> Any:
    """Returns a value of a row as JSON has it: dates, decimals and bytes become text."""
    if isinstance(value, dict):
        return {str(name): json_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def answer_and_solution(row: dict[str, Any], cfg: Any) -> tuple[str, str | None]:
    r"""Returns answer and worked solution of a row in one of three schemas.

    - reward_model.ground_truth, with extra_info.solution,
    - answer, with solution,
    - a solution whose last box holds the answer.

    The solution may be absent in the first two. If an answer holds "####" (GSM8K), the text before
    this mark is the solution. `cfg` is a RowTask with a column `solution`, and its columns replace
    these. Raises RowError for other rows.
    """
    verl = row.get("reward_model") is not None and not cfg.answer
    solution = _solution(row, cfg.solution or ("extra_info.solution" if verl else "solution"))
    if solution is not None and not verl and not cfg.answer and row.get("answer") is None:
        boxed = last_boxed(solution)
        if boxed is not None:
            return boxed, solution
    path = cfg.answer_path(row, "reward_model.ground_truth" if verl else "answer")
    answer = answer_field(row, path)
    worked, mark, end = answer.rpartition("####")
    if verl or not mark:
        return answer, solution
    return checked_text(end.strip(), f"field '{path}' after ####"), worked.strip()


def _solution(row: dict[str, Any], path: str) -> str | None:
    """Returns the text of the worked solution, None if the row has none."""
    value: Any = row
    for name in (path,) if path in row else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is not None and not isinstance(value, str):
        raise RowError(f"field '{path}' is {type(value).__name__}, not text")
    return value


def with_last(prompt: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    """Returns the messages with a changed text in the last one."""
    last: Message = {"role": prompt[-1]["role"], "content": change(prompt[-1]["content"])}
    return (*prompt[:-1], last)


def divided(
    cfg: config.TaskConfig, read: Read, train: str, test: str, *, deduplicate: bool = False
) -> tuple[list[Example], list[Example], tuple[Skipped, ...]]:
    """Returns training examples, held-out examples, and the rows that neither has.

    Without `test`, cfg.held_out examples are held out of `train`. With cfg.held_out 0 none are.

    Args:
        cfg: Says how many examples are held out, and the seed that chooses them.
        read: Returns the examples and the rows left out of a source, for the split train or test.
        train: The source of the training examples; empty for evaluation only.
        test: The source of the held-out examples.
        deduplicate: Whether to use each training prompt once.

    Raises:
        UserError: There would be no example, or every held-out one is in the training set.
    """
    if not train and not (test and cfg.held_out):
        raise UserError(
            "task.train is '': name a source, or for evaluation only one for task.test with "
            "task.held_out over 0"
        )
    examples, skipped = read(train, "train") if train else ([], ())
    if deduplicate and examples:
        examples, repeated = distinct(examples, train)
        skipped += repeated
    if not cfg.held_out:
        return examples, [], skipped
    if not test:
        return *split(examples, cfg.held_out, cfg.seed, train), skipped
    tests, skipped_tests = read(test, "test")
    held_out, seen = unseen(tests, examples, test)
    if not held_out:
        raise UserError(
            f"{test}: every row to be held out is in the training set too; choose another file, or "
            "task.test '' to hold out task.held_out rows of the training set"
        )
    return examples, held_out[: cfg.held_out], skipped + skipped_tests + seen


def options(row: dict[str, Any], name: str) -> dict[str, str | int | float] | None:
    """Returns the options of a multiple-choice row by their letters; None for a row without any.

    Column `name` holds a list of texts or numbers, or texts with labels ({"text": [...], "label":
    ["A", ...]}, as in ARC). Raises RowError for other values.
    """
    value = row.get(name)
    if value in (None, [], {}):
        return None
    texts, labels = value, None
    if isinstance(value, dict):
        texts, labels = value.get("text"), value.get("label")
    if not isinstance(texts, list) or not 2 <= len(texts) <= 26:
        raise RowError(f"field '{name}' is no list of 2 to 26 options")
    if not all(isinstance(t, str | int | float) for t in texts):
        raise RowError(f"field '{name}' has an option that is neither text nor number")
    letters = [chr(ord("A") + i) for i in range(len(texts))]
    if labels not in (None, letters):
        raise RowError(f"field '{name}' has the labels {labels}: must be {', '.join(letters)}")
    return dict(zip(letters, texts, strict=True))


def letter(row: dict[str, Any], name: str, choices: dict[str, str | int | float]) -> str:
    """Returns the letter of a row's answer: a letter, an option itself, or its index from 0.

    A number is an index unless the options are numbers. Raises RowError for an answer that is none
    of them, or that could be two of them.
    """
    value = field(row, name)
    if isinstance(value, str):
        found = {x for x, option in choices.items() if value.strip() in (x, str(option).strip())}
    elif any(isinstance(option, str) for option in choices.values()):
        found = {x for i, x in enumerate(choices) if i == value and not isinstance(value, bool)}
    else:
        found = {x for x, option in choices.items() if option == value}
    if len(found) != 1:
        raise RowError(
            f"field '{name}' is {value!r}: must be one letter of {', '.join(choices)}, the text "
            "of one option, or its index from 0"
        )
    return found.pop()
