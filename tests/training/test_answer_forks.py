"""Forks of held-out answers: those of whole logits in float64, and nothing else changes."""

import json
from dataclasses import replace

import forked
import numpy as np
import pytest
import tiny
from flax import nnx
from runs import lines
from sums import evaluation as job

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job
from sdjax.models.network import transformer
from sdjax.records import Completion, Example, Group
from sdjax.training import answer_forks, loaded_model

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharp") / "model"
    return tiny.model_folder(folder, sharper=4, num_hidden_layers=1)


def completion(tokens):
    return Completion(tokens=tokens, logprobs=np.zeros(len(tokens)), text="", finish="stop")


@pytest.mark.heavy
def test_counts_are_those_of_whole_logits_in_float64(sharp):
    rng = np.random.default_rng(0)

    def drawn(n):
        return rng.integers(3, tiny.VOCABULARY, n).astype(np.int32)

    example = Example(id="0", messages=(), answer="", task="")
    groups = [
        Group(
            example=example,
            prompt=drawn(prompt),
            completions=tuple(completion(drawn(n)) for n in sizes),
            grades=(),
        )
        for prompt, sizes in ((5, (1, 40)), (60, (30, 3)))
    ]
    model = loaded_model.open_model(
        config.Model(path=str(sharp), compute_dtype="float32"), config.Mesh(data=1)
    )
    found = list(answer_forks.count(model.sampler, model.stored_weights(), groups))
    _, graph, params = tiny.load(sharp, remat="none")
    network, wanted = nnx.merge(graph, params), []
    for group in groups:
        for answer in group.completions:
            tokens = np.concatenate([group.prompt, answer.tokens])[None]
            at = np.arange(tokens.shape[1], dtype=np.int32)[None]
            hidden = transformer.hidden_states(network, tokens, at, None)
            logits = np.asarray(transformer.logits(hidden, transformer.head_weight(network))[0])
            high, fork = forked.flags(logits[len(group.prompt) - 1 : -1])
            wanted.append({"forks": fork.sum(), "high_entropy": high.sum()})
    assert found == wanted
    assert 10 < sum(row["forks"] for row in found) < sum(row["high_entropy"] for row in found) < 74


@pytest.mark.heavy
def test_an_evaluation_has_the_rates_of_each_set_and_the_answers_that_it_had(sharp, tmp_path):
    plain = job(sharp, tmp_path / "plain")
    evaluate_job.run(plain)
    asked = replace(plain, out=str(tmp_path / "asked"), eval=replace(plain.eval, fork_rate=True))
    evaluate_job.run(asked)
    before, rows = (lines(tmp_path / name / "answers.jsonl") for name in ("plain", "asked"))
    assert [
        {k: v for k, v in r.items() if k not in ("forks", "high_entropy")} for r in rows
    ] == before
    scores = json.loads((tmp_path / "asked" / "scores.json").read_text())
    table = (tmp_path / "asked" / "scores.md").read_text()
    of_sets = {"chain_sum": scores, "largest": scores["out_of_domain"]["largest"]}
    for name, found in of_sets.items():
        own = [r for r in rows if r["set"] == name]
        forks, high, tokens = (sum(r[k] for r in own) for k in ("forks", "high_entropy", "tokens"))
        assert found["forks"] == {
            **{"positions": tokens, "high_entropy": high, "forks": forks},
            **{"rate": forks / tokens, "share": forks / high},
        }
        assert 0 < forks <= high and f"{100 * forks / tokens:.2f}" in table
    assert "forks" not in json.loads((tmp_path / "plain" / "scores.json").read_text())
    assert "fork" not in (tmp_path / "plain" / "scores.md").read_text()


def test_forks_are_refused_where_a_server_draws_the_answers(tmp_path):
    asked = job("unused", tmp_path, eval=config.Eval(fork_rate=True))
    with pytest.raises(UserError, match=r"eval.fork_rate is True: needs the local sampler"):
        replace(asked, server=config.Server(url="http://127.0.0.1:8000"))
