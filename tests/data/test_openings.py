"""Completions that begin with what the chat template has begun."""

from __future__ import annotations

import pytest

from sdjax.data.conversations import without_opening


@pytest.mark.parametrize(
    ("prompt", "completion", "left"),
    [
        ("assistant\n<think>\n", "<think>\na\n</think>\n\n5", "a\n</think>\n\n5"),
        ("assistant\n<think>\n", "<think>a</think>5", "a</think>5"),
        ("assistant\n<think>\n", "\n<think>\n\n</think>5", "\n</think>5"),
        ("assistant\n<think>\n", "a</think>5", "a</think>5"),
        ("assistant\n<think>\n", "5", "5"),
        ("assistant\n<think>\n\n</think>\n\n", "<think></think>5", "5"),
        ("assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n5", "5"),
        ("assistant\n<think>\n\n</think>\n\n", "<think>a</think>5", "<think>a</think>5"),
        ("assistant\n", "<think>a</think>5", "<think>a</think>5"),
        ("assistant\n", "\n5", "\n5"),
        ("[/INST][THINK]", "[THINK]a[/THINK]5", "a[/THINK]5"),
        ("assistant\n<|begin_of_thought|>\n", "<|begin_of_thought|>\na", "a"),
        ("assistant\n<scratchpad>\n", "<scratchpad>a</scratchpad>5", "a</scratchpad>5"),
        ("assistant\n<answer>", "<answer>5</answer>", "5</answer>"),
        ("<|assistant|>\n", "<think>a", "<think>a"),
        ("[INST] q [/INST]", "[/INST] a", "[/INST] a"),
        ("say <think>\nassistant\n", "<think>a", "<think>a"),
    ],
)
def test_a_thought_that_the_prompt_has_opened_is_not_opened_again(prompt, completion, left):
    assert without_opening(prompt, completion) == left
