"""The floating-point operations (FLOPs) and bytes that a model's work takes, from its sizes.

Only real tokens count. Padding and recomputation change the time of the work, not its size. The
product of an [m, k] and a [k, n] matrix is 2 m k n FLOPs. Norms, activations, softmax, rotary
embedding and the optimizer are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdjax.models.network.model_config import ModelConfig


def layer_params(cfg: ModelConfig) -> int:
    """Returns the number of entries in one layer's matrices: (2 H + 2 K) h D + 3 D F.

    The layer has H query heads and K KV heads of size h, hidden size D and MLP size F. Instead of
    the last term, E experts of size F and their router have `expert_params` + D E.
    """
    return _shared_params(cfg) + (expert_params(cfg) if cfg.experts else 3 * cfg.embed * cfg.mlp)


def active_params(cfg: ModelConfig) -> int:
    """Returns the number of entries of one layer's matrices that a token is multiplied by.

    They are those of `layer_params`, but only of the experts that a token runs.
    """
    return _shared_params(cfg) + 3 * cfg.embed * inner(cfg)


def expert_params(cfg: ModelConfig) -> int:
    """Returns the number of entries in the matrices of all experts of a layer: 3 D F E, or 0."""
    how = cfg.experts
    return 0 if how is None else 3 * cfg.embed * how.width * how.count


def inner(cfg: ModelConfig) -> int:
    """Returns the size of an MLP's inner layer, summed over the experts that a token runs."""
    return cfg.mlp if cfg.experts is None else cfg.experts.per_token * cfg.experts.width


def experts_hit(cfg: ModelConfig, tokens: float) -> float:
    """Returns the mean number of a layer's experts that at least one of so many tokens runs.

    It is E (1 - (1 - k / E)^tokens) if every k of E experts are equally likely; routers prefer some
    experts, so that fewer are hit.
    """
    how = cfg.experts
    assert how is not None
    return how.count * (1 - (1 - how.per_token / how.count) ** tokens)


def _shared_params(cfg: ModelConfig) -> int:
    """Returns the entries of a layer's attention and router, which every token uses."""
    heads = 2 * (cfg.num_heads + cfg.num_kv_heads) * cfg.head_dim
    return cfg.embed * (heads + (cfg.experts.count if cfg.experts else 0))


def pairs(length: int, window: int | None = None) -> int:
    """Returns the number of (query, key) pairs in causal attention over a sequence.

    It is S (S + 1) / 2 for S tokens. With a window of w < S tokens it is S w - w (w - 1) / 2.
    """
    w = length if window is None else min(window, length)
    return length * w - w * (w - 1) // 2


def attention(cfg: ModelConfig, lengths: Sequence[int], cached: Sequence[int] = ()) -> int:
    """Returns the FLOPs of attention in all layers: 4 H h per (query, key) pair.

    The first `cached` tokens of each sequence are keys but no queries; empty means 0.
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

    It is 2 x layers x active_params per token that is not cached, and `attention`. The head is not
    included.
    """
    tokens = sum(lengths) - sum(cached)
    return 2 * cfg.num_layers * active_params(cfg) * tokens + attention(cfg, lengths, cached)


def head(tokens: int, embed: int, vocab: int) -> int:
    """Returns the FLOPs of the language model head on N positions: 2 N D V."""
    return 2 * tokens * embed * vocab


def distilled_head(tokens: int, embed: int, vocab: int, teachers: int = 1) -> int:
    """Returns the FLOPs of the chunked head with gradient on N tokens: 8 N D V with one teacher.

    They are the logits of the student and of each teacher, and the two products of the backward
    pass, to the student's hidden states and to its head.
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
    """Returns the FLOPs that an update needs, as MFU counts them.

    They are the student's forward and backward passes (the backward is twice the forward), the
    teachers' forward passes, and the head on the tokens of the completions.

    Args:
        cfg: The model's sizes.
        prompts: Tokens of the student's prompt, one entry per completion.
        reprompts: Tokens of the teacher's prompt, one entry per completion.
        completions: Tokens of each completion.
        teachers: Forward passes over reprompts and completions: 0 without a teacher, 2 with the
            trust region.
    """
    student = forward(cfg, _sum(prompts, completions))
    teacher = teachers * forward(cfg, _sum(reprompts, completions)) if teachers else 0
    ends = distilled_head(sum(completions), cfg.embed, cfg.vocab_size, teachers)
    return 3 * student + teacher + ends


def recomputed(cfg: ModelConfig, prompts: Sequence[int], completions: Sequence[int]) -> int:
    """Returns the FLOPs of the student's forward pass that `cfg.remat` repeats, which HFU adds.

    full repeats all of it, dots the attention, none nothing.
    """
    lengths = _sum(prompts, completions)
    again = {"full": forward, "dots": attention}.get(cfg.remat)
    return again(cfg, lengths) if again else 0


def cache_bytes(cfg: ModelConfig, tokens: int) -> int:
    """Returns the bytes of keys and values that a query after `tokens` cached tokens reads.

    They are 2 K h numbers in the compute dtype per layer and cached token in its window.
    """
    seen = sum(tokens if w is None else min(w, tokens) for w in cfg.windows)
    return 2 * cfg.num_kv_heads * cfg.head_dim * seen * itemsize(cfg)


def weight_bytes(cfg: ModelConfig, rows: float = 1) -> int:
    """Returns the bytes of the matrices that a decoding step of `rows` tokens reads.

    They are those of layers and head. Of experts it reads only those that a token runs.
    """
    layer = layer_params(cfg)
    if cfg.experts is not None:
        missed = 1 - experts_hit(cfg, rows) / cfg.experts.count
        layer -= round(missed * expert_params(cfg))
    return (cfg.num_layers * layer + cfg.embed * cfg.vocab_size) * itemsize(cfg)


def decode_bytes(cfg: ModelConfig, prompts: Sequence[int], steps: int, *, shards: int = 1) -> int:
    """Returns the bytes that decoding `steps` tokens after each prompt must read.

    Each step reads the weights once per shard of the batch, and the keys and values that each
    sequence has by then.
    """
    weights = steps * shards * weight_bytes(cfg, len(prompts) / shards)
    return weights + sum(cache_bytes(cfg, p + t) for p in prompts for t in range(1, steps + 1))


def itemsize(cfg: ModelConfig) -> int:
    """Returns the bytes of one number in the compute dtype."""
    return {"bfloat16": 2, "float32": 4}[cfg.compute_dtype]


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]
