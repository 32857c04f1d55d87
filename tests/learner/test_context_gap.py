"""The divergence of a student from a teacher in a context, beside float64 and the train step."""

from operator import itemgetter

import jax
import learning
import numpy as np
import pytest
from flax import nnx

from sdjax.learner.context_gap import make_context_gap
from sdjax.learner.objective import Objective
from sdjax.models.network.transformer import head_matrix, hidden_states


def log_probs(learner, params, prompt, completion, temperature):
    """Returns float64[T, V]: log-probabilities at the places that predict the completion."""
    model = nnx.merge(learner.graphdef, params)
    tokens = np.concatenate([prompt, completion])[None]
    positions = np.arange(tokens.shape[1])[None]
    hidden = np.asarray(hidden_states(model, tokens, positions, None), np.float64)
    head = np.asarray(head_matrix(model), np.float64)
    logits = hidden[0, len(prompt) - 1 : -1] @ head.T / temperature
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.mark.parametrize("row_tokens", [0, 160])
def test_gaps_are_the_divergences_of_float64_logits_and_of_the_first_update(row_tokens):
    cfg = learning.train_config(
        optim=learning.PLAIN | {"row_tokens": row_tokens}, teacher={"dtype": "float32"}
    )
    learner, groups = learning.Learner(cfg, learning.make_mesh()), learning.groups()
    read = learning.reprompts(groups)
    batch = learning.pack(cfg, groups, read)
    with jax.set_mesh(learner.mesh):
        measure = make_context_gap(learner.graphdef, Objective.of(cfg), learner.mesh)
        params = learner.state.model_params()
        found = np.zeros(batch.rows.token.shape)
        for i in range(batch.microbatches):
            found[i] = measure(params, jax.tree.map(itemgetter(i), batch.rows))
        by_completion = learning.by_completion(batch, found)
        pairs = [(g, c, r) for g, of in zip(groups, read, strict=True)
                 for c, r in zip(g.completions, of, strict=True)]  # fmt: skip
        for number in (4, 9, 15):
            group, completion, shown = pairs[number]
            p, q = (
                log_probs(learner, params, prompt, completion.tokens, cfg.rollout.temperature)
                for prompt in (group.prompt, shown.tokens)
            )
            wanted = (np.exp(p) * (p - q)).sum(-1)
            np.testing.assert_allclose(by_completion[number], wanted, rtol=1e-4, atol=1e-5)
    assert by_completion[0] is None and (found[batch.rows.sample < 0] == 0).all()
    tokens = batch.samples.length[batch.samples.distilled].sum()
    metrics = learner.update(batch)
    assert metrics["distill/reverse_kl"] == pytest.approx(found.sum() / tokens, rel=1e-5)
    assert metrics["distill/reverse_kl"] > 0.01
