"""Forks by the plainest formulas, in float64 and without jax."""

import numpy as np


def flags(logits):
    """Returns where the entropy of softmax(logits [..., V]) is high, and where a fork is."""
    x = np.asarray(logits, np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    nats = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)
    second = np.sort(p, axis=-1)[..., -2]
    return nats >= 0.672, (nats >= 0.672) & (second >= 0.1)
