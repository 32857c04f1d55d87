"""The remote sampler: tokens as of the sampler here, honest log-probabilities, one-line errors."""

import json
import socket
from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
import serving
import sums
import tiny
from paths import ROOT

from sdjax import config, main
from sdjax.errors import UserError
from sdjax.jobs import evaluate_job, train_job
from sdjax.rollout.interface import SamplingRequest, sample
from sdjax.rollout.server import client

pytestmark = pytest.mark.usefixtures("compiled_once")

PROMPTS = [np.arange(5, 12), np.arange(40, 43), np.arange(100, 117)]
GREEDY = config.Sampling(temperature=0.0, max_completion_tokens=16)
HOT = config.Sampling(temperature=0.7, max_completion_tokens=16)
ENGINES = ("vllm", "sglang")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(folder):
    return serving.Model(folder)


@pytest.fixture
def server(model):
    with serving.serving(model) as started:
        yield started


def sampler(url, engine="vllm", **changes):
    cfg = config.Server(url=url, engine=engine, **{"retries": 1, "timeout_s": 60.0} | changes)
    return client.make(
        cfg, stop_ids=serving.STOPS, vocab_size=tiny.VOCABULARY, write=lambda params: "unused"
    )


def draw(made, sampling=GREEDY, prompts=PROMPTS, key=0):
    request = SamplingRequest(
        prompts=prompts, group_size=3, sampling=sampling, key=jax.random.key(key)
    )
    return sample(made, None, request)


def plain(groups):
    return [[(d.tokens.tolist(), d.logprobs.tolist(), d.finish) for d in g] for g in groups]


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_completions_are_those_of_the_sampler_here(server, model, engine):
    made = plain(draw(sampler(server.url, engine)))
    request = SamplingRequest(prompts=PROMPTS, group_size=3, sampling=GREEDY, key=jax.random.key(0))
    with jax.set_mesh(model.mesh):
        here = sample(model.sampler, model.weights, request)
    assert made == plain(here)


def test_drawn_tokens_and_logprobs_arrive_unchanged(server, model):
    made = draw(sampler(server.url), HOT)
    asked = {tuple(body["prompt"]): body for path, body, _ in server.seen}
    for prompt, group in zip(PROMPTS, made, strict=True):
        seed = asked[tuple(prompt.tolist())]["seed"]
        assert plain([group]) == plain([model.draw(prompt, 3, seed, HOT)])
    assert {d.finish for g in made for d in g} <= {"stop", "length"}
    assert all((d.tokens[-1] in serving.STOPS) == (d.finish == "stop") for g in made for d in g)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_repeats_its_tokens_and_another_draws_others(server, engine):
    made = sampler(server.url, engine)
    first = plain(draw(made, HOT))
    assert first == plain(draw(made, HOT))
    assert first != plain(draw(made, HOT, key=1))
    assert all(len({tuple(tokens) for tokens, _, _ in group}) > 1 for group in first)


def test_sglang_gets_a_seed_for_each_completion(server):
    draw(sampler(server.url, "sglang"), HOT)
    seeds = [p["sampling_seed"] for _, body, _ in server.seen for p in body["sampling_params"]]
    assert len(set(seeds)) == 9


def test_token_ids_are_read_from_older_servers_too(server):
    right = plain(draw(sampler(server.url), HOT))

    def without_ids(path, answer):
        for choice in answer["choices"]:
            del choice["token_ids"]
        return answer

    server.spoil = without_ids
    assert plain(draw(sampler(server.url), HOT)) == right


def test_the_key_of_the_environment_is_sent(server, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "open sesame")
    draw(sampler(server.url, key_variable="TINY_KEY"))
    assert {authorization for _, _, authorization in server.seen} == {"Bearer open sesame"}
    with pytest.raises(UserError, match=r"server\.key_variable is 'NO_KEY'"):
        sampler(server.url, key_variable="NO_KEY")


@pytest.mark.parametrize("fault", [(500, "once"), (429, "busy"), (503, ""), "cut"])
def test_passing_trouble_is_tried_again(server, fault):
    right = plain(draw(sampler(server.url)))
    server.faults = [fault]
    assert plain(draw(sampler(server.url))) == right


def one_line(error, url):
    text = str(error.value)
    assert "\n" not in text and url in text
    return text


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([(500, {"error": {"message": "engine\ndead"}})] * 9, "HTTP 500: engine dead"),
        ([(400, {"message": "prompt too long"})], "HTTP 400: prompt too long"),
        ([(401, {"error": "Unauthorized"})], "HTTP 401: Unauthorized"),
        ([(404, {"detail": "Not Found"})], "HTTP 404: Not Found"),
        ([(200, "<html>a page")], "answered no JSON but '<html>a page'"),
        (["hang"], "no answer in 0.5 s"),
        (["cut"] * 9, "not reached in 2 tries"),
    ],
)
def test_lasting_trouble_is_one_line(server, faults, says):
    made = sampler(server.url, concurrency=1, timeout_s=0.5 if "hang" in faults else 60.0)
    server.faults = list(faults)
    with pytest.raises(UserError) as error:
        draw(made, prompts=PROMPTS[:1])
    assert says in one_line(error, server.url)


def test_a_server_that_is_not_there_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError) as error:
        draw(sampler(url))
    assert "not reached in 2 tries (" in one_line(error, url)
    assert "start the server, or correct server.url" in str(error.value)


def before_temperature(path, answer):
    """Makes an answer that of a server that reports the model's own log-probabilities."""
    for c in answer["choices"]:
        c["logprobs"]["token_logprobs"] = [-1.0] * len(c["token_ids"])
    return answer


def test_logprobs_of_another_distribution_are_found_out(server):
    made = sampler(server.url)
    made.check(HOT)
    server.spoil = before_temperature
    made.check(None)
    made.check(replace(HOT, temperature=1.0))
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        made.check(HOT)
    with pytest.raises(UserError, match=r"top_p 0\.9"):
        made.check(replace(HOT, temperature=1.0, top_p=0.9))


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ENGINES)
def test_training_gives_each_step_s_weights_to_the_server(folder, tmp_path, engine):
    changes = {"optim": {"lr": 3e-2}, "eval": {"every": 0}, "checkpoint": {"every": 0}}
    with serving.serving(serving.Model(folder)) as server:
        served = config.Server(url=server.url, engine=engine, reload="folder")
        cfg = sums.job(folder, tmp_path / "run", steps=2, rollout={"server": served}, **changes)
        train_job.run(cfg)
    lines = runs.lines(tmp_path / "run" / "metrics.jsonl")
    rows = runs.lines(tmp_path / "run" / "rollouts.jsonl")
    assert [m["step"] for m in lines] == [0, 1, 2] and len(rows) == 2 * 16
    # With the weights of the step before, the second step's gap would be that of an update.
    for row in rows:
        np.testing.assert_allclose(row["student_logprobs"], row["sampler_logprobs"], atol=2e-4)
    loads = [p for p, _, _ in server.seen if p in ("/collective_rpc", "/update_weights_from_disk")]
    assert len(loads) == 3  # before the first step, and after each of the two


@pytest.mark.heavy
def test_an_update_shows_in_the_gap_of_a_server_that_keeps_its_weights(folder, tmp_path):
    changes = {"optim": {"lr": 3e-2}, "eval": {"every": 0}, "checkpoint": {"every": 0}}
    with serving.serving(serving.Model(folder)) as server:
        served = config.Server(url=server.url, off_policy=True)
        train_job.run(
            sums.job(folder, tmp_path / "run", steps=2, rollout={"server": served}, **changes)
        )
    first, second = runs.lines(tmp_path / "run" / "metrics.jsonl")[1:]
    assert first["sampler/abs_gap"] < 1e-4 < 1e-2 < second["sampler/abs_gap"]


# Of each step's requests two load the weights and four sample.
@pytest.mark.parametrize(
    "answers", [4, pytest.param(12, marks=pytest.mark.heavy)], ids=["first step", "second step"]
)
def test_a_server_that_dies_in_a_step_ends_the_run_with_one_line(folder, tmp_path, answers):
    changes = {"eval": {"every": 0}, "checkpoint": {"every": 0}}
    with serving.serving(serving.Model(folder)) as server:
        served = config.Server(url=server.url, reload="folder", retries=1, concurrency=2)
        cfg = sums.job(folder, tmp_path / "run", rollout={"server": served}, **changes)
        answered = iter(range(20))

        def dies(path, answer):
            if next(answered) >= answers:
                server.faults = ["cut"] * 100
            return answer

        server.spoil = dies
        with pytest.raises(UserError) as error:
            train_job.run(cfg)
    assert "not reached in 2 tries" in one_line(error, server.url)


@pytest.mark.heavy
def test_an_evaluation_on_a_server_scores_what_the_sampler_here_would(folder, tmp_path):
    cfg = sums.evaluation(folder, tmp_path / "here")
    greedy = replace(cfg, eval=replace(cfg.eval, temperature=0.0, top_p=1.0))
    evaluate_job.run(greedy)
    with serving.serving(serving.Model(folder)) as server:
        served = config.Server(url=server.url)
        evaluate_job.run(replace(greedy, out=str(tmp_path / "there"), server=served))
    texts = [(tmp_path / out / "answers.jsonl").read_text() for out in ("here", "there")]
    assert texts[0] == texts[1]


def test_an_evaluation_from_before_there_were_servers_can_go_on(folder, tmp_path):
    cfg = replace(sums.evaluation(folder, tmp_path, out_of_domain={}), resume=True)
    (tmp_path / "answers.jsonl").touch()
    made = config.to_dict(cfg)
    del made["server"]
    (tmp_path / "config.json").write_text(json.dumps(made))
    evaluate_job.run(cfg)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    with pytest.raises(UserError, match=r"server\.url null -> http://a:1"):
        evaluate_job.run(replace(cfg, server=config.Server(url="http://a:1", retries=0)))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--rollout.server.url", "localhost:8000"], "server.url is 'localhost:8000'"),
        (["--rollout.server.url", "http://a:1/v1"], "without /v1"),
        (["--rollout.server.url", "http://a:1"], "rollout.server.reload is 'none'"),
        (
            [
                *("--rollout.server.url", "http://a:1", "--rollout.server.reload", "folder"),
                *("--rollout.server.engine", "sglang", "--rollout.top_p", "0.9"),
            ],
            "rollout.top_p is 0.9: must be 1 with SGLang",
        ),
    ],
)
def test_a_server_that_cannot_train_is_refused_at_the_start(args, says, capsys):
    config = ROOT / "configs" / "smollm2" / "sdpo_chain_sum.py"
    assert main.main(["--config", str(config), *args]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_an_evaluation_does_not_change_the_server_s_weights(folder, tmp_path):
    cfg = sums.evaluation(folder, tmp_path)
    with pytest.raises(UserError, match=r"server\.reload is 'folder'"):
        replace(cfg, server=config.Server(url="http://a:1", reload="folder"))
    assert json.loads(json.dumps(config.to_dict(cfg)))["server"]["url"] is None
