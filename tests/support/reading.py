"""Graded groups, and a tokenizer whose reprompts can be read back, for tests of the teacher."""

import json

import numpy as np

from sdjax.records import Completion, Example, Grade, Group


class Readable:
    """Encodes a conversation as the bytes of its JSON, so that tests can read it back."""

    def encode_prompt(self, messages, *, enable_thinking):
        text = json.dumps({"messages": messages, "enable_thinking": enable_thinking})
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, ids):
        return np.asarray(ids, np.uint8).tobytes().decode(errors="replace")


def make_group(
    texts, rewards, *, feedback=None, example=None, lengths=None, prompt=(), answers=None
):
    answers = answers or [None] * len(texts)
    feedback = feedback or [""] * len(texts)
    lengths = lengths or [len(text) for text in texts]
    return Group(
        example=example or question("How many?"),
        prompt=np.array(prompt, np.int32),
        completions=tuple(
            Completion(
                tokens=np.zeros(n, np.int32),
                logprobs=np.zeros(n, np.float32),
                text=text,
                finish="stop",
            )
            for text, n in zip(texts, lengths, strict=True)
        ),
        grades=tuple(
            Grade(reward=r, correct=r > 0.5, feedback=f, details={"prediction": answer})
            for r, f, answer in zip(rewards, feedback, answers, strict=True)
        ),
    )


def question(text, *, solution=None, name="e0"):
    return Example(
        id=name,
        messages=({"role": "user", "content": text},),
        answer="4",
        solution=solution,
        task="t",
    )
