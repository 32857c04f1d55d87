"""The divergence of a student from a teacher in a context, beside float64 and the train step."""

from operator import itemgetter

import jax
import learning
import numpy as np
import pytest
from flax import nnx

from sdjax.learner.context_gap import make_context_gap
from sdjax.learner.objective import Objective
from sdjax.models.network.transformer import Transformer, head_matrix, hidden_states


def log_probs(graphdef, params, prompt, completion, temperature):
    """Returns float64[T, V]: log-probabilities at the places that predict the completion."""
    model = nnx.merge(graphdef, params)
    tokens = np.concatenate([prompt, completion])[None]
    positions = np.arange(tokens.shape[1])[None]
    hidden = np.asarray(hidden_states(model, tokens, positions, None), np.float64)
    head = np.asarray(head_matrix(model), np.float64)
    logits = hidden[0, len(prompt) - 1 : -1] @ head.T / temperature
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def measured(row_tokens):
    """Returns config, graphdef, params, groups, reprompts, the batch and its gaps [M, R, C]."""
    optim = learning.PLAIN | {"row_tokens": row_tokens}
    cfg = learning.train_config(optim=optim, teacher={"dtype": "float32"})
    mesh, groups = learning.make_mesh(), learning.groups()
    read = learning.reprompts(groups)
    batch = learning.pack(cfg, groups, read)
    graphdef, abstract = nnx.split(
        nnx.eval_shape(lambda: Transformer(learning.CFG, rngs=nnx.Rngs(0)))
    )
    params = learning.random_params(abstract)
    found = np.zeros(batch.rows.token.shape)
    with jax.set_mesh(mesh):
        measure = make_context_gap(graphdef, Objective.of(cfg), mesh)
        for i in range(batch.microbatches):
            found[i] = measure(params, jax.tree.map(itemgetter(i), batch.rows))
    return cfg, graphdef, params, groups, read, batch, found


@pytest.mark.heavy
@pytest.mark.parametrize("row_tokens", [160, 0])
def test_gaps_are_the_divergences_of_float64_logits(row_tokens):
    cfg, graphdef, params, groups, read, batch, found = measured(row_tokens)
    by_completion = learning.by_completion(batch, found)
    for number in (4, 9, 15):
        place = divmod(number, 4)
        group, shown = groups[place[0]], read[place[0]][place[1]]
        completion = group.completions[place[1]]
        with jax.set_mesh(learning.make_mesh()):
            p, q = (
                log_probs(graphdef, params, prompt, completion.tokens, cfg.rollout.temperature)
                for prompt in (group.prompt, shown.tokens)
            )
        wanted = (np.exp(p) * (p - q)).sum(-1)
        np.testing.assert_allclose(by_completion[number], wanted, rtol=1e-4, atol=1e-5)
    # The first group reads nothing more than the student.
    assert by_completion[0] is None and (found[batch.rows.sample < 0] == 0).all()


@pytest.mark.heavy
def test_the_mean_gap_is_the_divergence_of_the_first_update():
    cfg, *_, batch, found = measured(160)
    metrics = learning.Learner(cfg, learning.make_mesh()).update(batch)
    tokens = batch.samples.length[batch.samples.distilled].sum()
    assert metrics["distill/reverse_kl"] == pytest.approx(found.sum() / tokens, rel=1e-5)
    assert metrics["distill/reverse_kl"] > 0.01
