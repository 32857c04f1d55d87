"""Your reward: what an answer earns. Edit this function for another rule."""

from sdjax.graders import grade

LONG = 100
"""Words from which a correct answer earns half of the reward."""


def reward(completion, row, truncated):
    """Returns a reward from 0 to 1. From 0.5 on, the completion counts as correct.

    `completion` is the model's text, and may be any text. `row` has all columns of its row in
    mine.jsonl. `truncated` says that the limit of tokens cut the completion off.
    """
    # A rule of the package (docs/graders.md): the expression uses these numbers and no others.
    right = grade("expression", completion, row["answer"], truncated=truncated).correct
    return 0.5 if right and len(completion.split()) >= LONG else float(right)
