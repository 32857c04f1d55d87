"""How much arithmetic and how many bytes a model's work takes, counted from its sizes. No jax.

Everything is counted over real tokens: padding, and what an implementation computes twice or
spares itself, change the time of a piece of work and not its size. A product of an [m, k] and a
[k, n] matrix is 2 m k n operations (FLOPs); norms, activations, softmax, rotary embedding and the
optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdjax.models.network.model_config import ModelConfig


def layer_params(cfg: ModelConfig) -> int:
    """Returns the entries of one layer's matrices: (2 H + 2 K) h D + 3 D F.

    H query heads and K key-value heads of size h, hidden size D, MLP size F.
    """
    heads = 2 * (cfg.num_heads + cfg.num_kv_heads) * cfg.head_dim
    return cfg.embed * (heads + 3 * cfg.mlp)


def pairs(length: int, window: int | None = None) -> int:
    """Returns how many (query, key) pairs causal attention over a sequence has.

    S (S + 1) / 2; with a window of w < S tokens S w - w (w - 1) / 2.
    """
    w = length if window is None else min(window, length)
    return length * w - w * (w - 1) // 2


def attention(cfg: ModelConfig, lengths: Sequence[int], cached: Sequence[int] = ()) -> int:
    """Returns the FLOPs of attention in all layers: 4 H h for each (query, key) pair.

    `cached` is how many leading tokens of each sequence are no queries, only keys; none where
    empty.
    """
    of_pair = 4 * cfg.num_heads * cfg.head_dim
    known = cached or [0] * len(lengths)
    return of_pair * sum(
        pairs(length, window) - pairs(before, window)
        for window in cfg.windows
        for length, before in zip(lengths, known, strict=True)
    )


def forward(cfg: ModelConfig, lengths: Sequence[int], cached: Sequence[int] = ()) -> int:
    """Returns the FLOPs of the layers' forward pass over sequences of these lengths.

    2 x layers x layer_params for a token that is not cached, and `attention`; without the head.
    """
    tokens = sum(lengths) - sum(cached)
    return 2 * cfg.num_layers * layer_params(cfg) * tokens + attention(cfg, lengths, cached)


def head(tokens: int, embed: int, vocab: int) -> int:
    """Returns the FLOPs of the language model head on N positions: 2 N D V."""
    return 2 * tokens * embed * vocab


def distilled_head(tokens: int, embed: int, vocab: int, teachers: int = 1) -> int:
    """Returns the FLOPs of the chunked head with gradient on N tokens: 8 N D V with a teacher.

    Logits of the student and of each teacher context, and two products back to the student's
    hidden states and head.
    """
    return (3 + teachers) * head(tokens, embed, vocab)


def update(
    cfg: ModelConfig,
    prompts: Sequence[int],
    reprompts: Sequence[int],
    completions: Sequence[int],
    *,
    teachers: int,
) -> int:
    """Returns the FLOPs that an update needs: what MFU counts.

    Student forward and backward (twice the forward) over prompts and completions; `teachers`
    forward passes over reprompts and completions (0: no teacher; 2: trust region); the head on the
    completions' tokens. All lengths in tokens, one entry a completion.
    """
    student = forward(cfg, _sum(prompts, completions))
    teacher = teachers * forward(cfg, _sum(reprompts, completions)) if teachers else 0
    ends = distilled_head(sum(completions), cfg.embed, cfg.vocab_size, teachers)
    return 3 * student + teacher + ends


def recomputed(cfg: ModelConfig, prompts: Sequence[int], completions: Sequence[int]) -> int:
    """Returns the FLOPs of the student's forward that `cfg.remat` runs again: what HFU adds.

    full: the whole of it; dots: attention; none: nothing.
    """
    lengths = _sum(prompts, completions)
    again = {"full": forward, "dots": attention}.get(cfg.remat)
    return again(cfg, lengths) if again else 0


def cache_bytes(cfg: ModelConfig, tokens: int) -> int:
    """Returns the bytes of keys and values that the query after `tokens` cached ones reads.

    2 K h entries in the compute dtype for each layer and cached token inside its window.
    """
    seen = sum(tokens if w is None else min(w, tokens) for w in cfg.windows)
    return 2 * cfg.num_kv_heads * cfg.head_dim * seen * itemsize(cfg)


def weight_bytes(cfg: ModelConfig) -> int:
    """Returns the bytes of the matrices that decoding a token reads: layers and head."""
    return (cfg.num_layers * layer_params(cfg) + cfg.embed * cfg.vocab_size) * itemsize(cfg)


def decode_bytes(cfg: ModelConfig, prompts: Sequence[int], steps: int, *, shards: int = 1) -> int:
    """Returns the bytes that decoding `steps` tokens after each prompt must read.

    The weights once a step (in each of the batch's `shards`), and of every sequence the keys and
    values that are there at the step.
    """
    weights = steps * shards * weight_bytes(cfg)
    return weights + sum(cache_bytes(cfg, p + t) for p in prompts for t in range(1, steps + 1))


def itemsize(cfg: ModelConfig) -> int:
    """Returns the bytes of one number in the compute dtype."""
    return {"bfloat16": 2, "float32": 4}[cfg.compute_dtype]


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]
