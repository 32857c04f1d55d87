"""rollouts.jsonl: its fields, the completions with every token, and its writing thread."""

import re
import threading

import jax
import learning
import numpy as np
import other_process
import pytest
from mixed_rewards import of
from runs import lines
from sums import job

from sdjax import config
from sdjax.jobs import train_job
from sdjax.learner import alternatives
from sdjax.logs import writers
from sdjax.tokenizer import Tokenizer
from sdjax.training import update_log

TOKENS = {"tokens", "pieces", "epistemic", "sampler_logprobs", "student_logprobs"}
TEXT = {"step", "id", "prompt", "completion", "length", "finish", "answer", "reward", "correct"}
TEXT |= {"feedback", "details"}


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """Returns the rows of 2 steps: 10 of 16 completions have every token, 3 have alternatives."""
    out = tmp_path_factory.mktemp("run") / "sdpo"
    log = {"rollouts_per_step": 10, "alternatives_of": 3, "alternatives_tokens": 5}
    eval_ = {"every": 0, "examples": 1, "k": 1, "batch": 1}
    off = {"every": 0, "export": False}
    train_job.run(job(model, out, steps=2, log=log, eval=eval_, checkpoint=off))
    return lines(out / "rollouts.jsonl")


@pytest.mark.heavy
def test_every_completion_has_text_and_grade_and_a_chosen_few_every_token(run):
    for step in (1, 2):
        rows = [r for r in run if r["step"] == step]
        assert len(rows) == 16 and all(set(r) >= TEXT for r in rows)
        full = [r for r in rows if "tokens" in r]
        assert len(full) == 10 and all(set(r) >= TOKENS | {"reprompt"} for r in full)
        assert all(set(r) == TEXT for r in rows if "tokens" not in r)
        assert sum("student_top" in r for r in full) == 3


@pytest.mark.heavy
def test_the_pieces_of_a_completion_make_its_text_and_numbers_stand_for_each(run, model):
    tokenizer = Tokenizer.load(model)
    for r in (r for r in run if "tokens" in r):
        # Several bytes that are no characters may become one replacement character.
        made, whole = "".join(r["pieces"]), tokenizer.decode_raw(r["tokens"])
        assert re.sub("\ufffd+", "\ufffd", made) == re.sub("\ufffd+", "\ufffd", whole)
        sizes = {k: len(r[k]) for k in r if k.endswith(("_logprobs", "_entropy", "_top"))}
        assert set(sizes.values()) == {r["length"]} == {len(r["pieces"])}, sizes
        assert all(0 <= i < r["length"] for i in r["epistemic"])
        assert all(0 <= e < 6 for e in r["student_entropy"] + r["teacher_entropy"])


@pytest.mark.heavy
def test_alternatives_hold_the_sampled_token_at_its_log_probability(run):
    found = 0
    for r in (r for r in run if "student_top" in r):
        assert r["student_top"][5:] == r["teacher_top"][5:] == [[]] * (r["length"] - 5)
        for who in ("student", "teacher"):
            tops, given = r[f"{who}_top"][:5], r[f"{who}_logprobs"]
            for piece, logprob, top in zip(r["pieces"], given, tops, strict=False):
                assert len(top) == 5 and [p for _, p in top] == sorted((p for _, p in top))[::-1]
                # All bytes that are no characters have the same text.
                own = [p for text, p in top if text == piece != "\N{REPLACEMENT CHARACTER}"]
                found += len(own)
                assert not own or own[0] == pytest.approx(logprob, abs=1.1e-3)
    assert found > 5


@pytest.mark.heavy
def test_grpo_has_no_teacher_and_each_update_its_own_completions(model, tmp_path):
    optim, off = {"minibatches": 2}, {"every": 0, "export": False}
    out = tmp_path / "run"
    train_job.run(of(model, out, "grpo", 0, mixed_every=1, steps=1, optim=optim, checkpoint=off))
    rows = lines(out / "rollouts.jsonl")
    assert not any(k for r in rows for k in r if "teacher" in k or k == "reprompt")
    scored = [(i, r) for i, r in enumerate(rows) if r["student_logprobs"]]
    assert {i // 8 for i, _ in scored} == {0, 1}
    for i, r in scored:
        assert len(r["student_entropy"]) == r["length"]
        near = np.allclose(r["student_logprobs"], r["sampler_logprobs"], atol=2e-4)
        # The second update reports log-probabilities after the first one has moved the parameters.
        assert near == (i < 8)
        assert ("student_top" in r) <= (i < 8)


def make_alternatives(learner):
    """Returns the jitted function to the alternatives of rows."""
    return alternatives.make_alternatives(
        learner.graphdef,
        learner.objective,
        learner.cfg.log.alternatives,
        learner.mesh,
        learner.shardings,
    )


KINDS = {
    "initial": {},
    "live": {"teacher": {"kind": "live"}},
    "ema": {"teacher": {"kind": "ema", "ema_rate": 0.5}},
    "trust_region": {"teacher": {"kind": "trust_region", "mix": 0.4}},
    "packed": {"optim": {"row_tokens": 160}},
    "grpo": {"loss": {"distillation": 0.0}},
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_alternatives_are_of_the_distributions_that_the_update_compares(kind):
    sections = {"teacher": {"dtype": "float32"}, **KINDS[kind]}
    cfg = learning.train_config(log={"alternatives": 256}, **sections)
    learner, batch = learning.Learner(cfg, learning.make_mesh()), learning.pack(cfg)
    learner.update(batch)
    with jax.set_mesh(learner.mesh):
        learner.state = learner.after(learner.state)  # now the teachers differ
    score = make_alternatives(learner)
    few = np.flatnonzero(batch.samples.learned)[[0, 3, -1]].tolist()
    with jax.set_mesh(learner.mesh):
        made = alternatives.scored(score, learner.state, batch, few, learner.mesh, 4)
        found = made.by_completion()
    learner.update(batch)
    tokens = learning.by_completion(batch, batch.rows.token)
    for who in ("student", "teacher"):
        reported = getattr(learner.record, f"{who}_logprob")
        if kind == "grpo" and who == "teacher":
            assert reported is None and all(f.teacher is None for f in found.values())
            continue
        reported = learning.by_completion(batch, reported)
        for i in few:
            top = getattr(found[i], who)
            assert top.token.shape == (len(tokens[i]), 256)
            own = top.logprob[top.token == tokens[i][:, None]]
            np.testing.assert_allclose(own, reported[i], rtol=2e-5, atol=2e-5)
            assert np.all(np.diff(top.logprob) <= 0)


@pytest.mark.heavy
def test_alternatives_on_a_mesh_are_those_of_one_device():
    other_process.on_eight_devices("import test_update_log as t; t.compare_with_one_device()")


def compare_with_one_device():
    """Runs in the subprocess."""
    cfg = learning.train_config()
    batch = learning.pack(cfg)
    few = np.flatnonzero(batch.samples.learned)[[0, 3, -1]].tolist()
    found = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        learner = learning.Learner(cfg, learning.make_mesh(*sizes))
        score = make_alternatives(learner)
        with jax.set_mesh(learner.mesh):
            made = alternatives.scored(score, learner.state, batch, few, learner.mesh, 5)
            found.append(made.by_completion())
    assert jax.device_count() == 8 and set(found[0]) == set(few)
    for one, many in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


def test_alternatives_compile_once_for_batches_of_one_shape():
    cfg = learning.train_config()
    learner = learning.Learner(cfg, learning.make_mesh())
    score = make_alternatives(learner)
    batch = learning.pack(cfg)
    learned = np.flatnonzero(batch.samples.learned).tolist()
    with jax.set_mesh(learner.mesh):
        for few in (learned[:1], learned[:4], learned[2:5]):
            found = alternatives.scored(score, learner.state, batch, few, learner.mesh, 4)
            assert set(found.by_completion()) == set(few)
    assert score._cache_size() == 1


def test_the_chosen_are_correct_and_wrong_in_turn_and_the_same_when_drawn_again():
    groups = learning.groups(prompts=6)
    correct = np.array([x.correct for g in groups for x in g.grades])
    assert 3 < correct.sum() < 12

    def chosen(step=3, **log):
        return update_log.choose(groups, config.Log(**log), seed=1, step=step)

    few = chosen(rollouts_per_step=6)
    assert correct[few].tolist() in ([True, False] * 3, [False, True] * 3)
    assert few == chosen(rollouts_per_step=6) != chosen(step=4, rollouts_per_step=6)
    assert sorted(chosen(rollouts_per_step=0)) == list(range(24))
    assert sorted(chosen(rollouts_per_step=99)) == list(range(24))
    assert chosen(rollouts=False) == []


def rows_after(gate, rows):
    gate.wait(10)
    yield from rows


def test_writing_waits_for_nothing_but_the_step_before_the_last(tmp_path):
    gate = threading.Event()
    with writers.RolloutWriter(tmp_path, primary=True) as writer:
        writer.write(1, rows_after(gate, [{"i": 0}, {"i": 1}]))
        writer.write(2, [{"i": 2}])
        assert (tmp_path / "rollouts.jsonl").read_text() == ""
        gate.set()
        writer.flush()
        read = lines(tmp_path / "rollouts.jsonl")
        assert [(r["step"], r["i"]) for r in read] == [(1, 0), (1, 1), (2, 2)]


def test_a_third_step_waits_until_there_is_room_for_it(tmp_path):
    gate = threading.Event()
    threading.Timer(0.2, gate.set).start()
    with writers.RolloutWriter(tmp_path, primary=True) as writer:
        for step in (1, 2, 3):
            assert not gate.is_set()
            writer.write(step, rows_after(gate, [{}]))
        assert gate.is_set()
    assert [r["step"] for r in lines(tmp_path / "rollouts.jsonl")] == [1, 2, 3]


def test_a_disk_that_is_full_ends_the_run_in_one_line(tmp_path):
    (tmp_path / "rollouts.jsonl").symlink_to("/dev/full")
    writer = writers.RolloutWriter(tmp_path, primary=True)
    writer.write(1, [{"text": "x"}])
    with pytest.raises(config.UserError, match=r"rollouts\.jsonl: cannot be written \(No space"):
        writer.flush()


def test_a_mistake_in_the_lines_is_raised_where_the_next_are_written(tmp_path):
    writer = writers.RolloutWriter(tmp_path, primary=True)
    writer.write(1, [{"a": {1}}])
    with pytest.raises(TypeError, match="set"):
        for step in range(2, 5):
            writer.write(step, [])
    writer.close()


def test_a_character_of_several_tokens_is_one_piece(model):
    tokenizer = Tokenizer.load(model)
    text = "a🙂é\n<|im_end|>日"
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)
    assert pieces[:8] == ["a", "🙂", "", "", "", "é", "", "\n"]
    torn = tokenizer.pieces(ids[:3])
    assert torn[0] == "a" and set("".join(torn[1:])) == {"\N{REPLACEMENT CHARACTER}"}
