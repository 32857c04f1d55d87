"""Dynamic sampling: whole runs on a task of which only some questions have rewards that differ."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
from calls import Calls
from mixed_rewards import METHODS, Letters, of
from runs import lines

from sdjax import config
from sdjax.jobs import train_job
from sdjax.records import Completion, Example, Grade, Group
from sdjax.rollout import collect
from sdjax.training import loaded_model


def of_training(out):
    return [m for m in lines(out / "metrics.jsonl") if m["step"] > 0]


def rewards_by_group(out):
    """Returns the rewards of every 4 rows of rollouts.jsonl, which are a group."""
    return np.array([r["reward"] for r in lines(out / "rollouts.jsonl")]).reshape(-1, 4)


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
def test_a_step_has_only_groups_with_a_signal_where_enough_exist(model, tmp_path, method):
    calls = {}
    make = loaded_model.samplers.make

    def sampler(*args, **kwargs):
        made = make(*args, **kwargs)
        calls.update({name: Calls(getattr(made.programs, name)) for name in ("prefill", "decode")})
        return replace(made, programs=replace(made.programs, **calls))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model.samplers, "make", sampler)
        train_job.run(of(model, tmp_path / "run", method, rounds=20, steps=3))
    rewards = rewards_by_group(tmp_path / "run")
    assert len(rewards) == 3 * 4
    assert np.all(rewards.min(1) != rewards.max(1)) or method == "sdpo"
    assert np.all(rewards.max(1) == 1)
    for metrics in of_training(tmp_path / "run"):
        assert metrics["rollout/sampling_rounds"] > 1
        # Of all that was sampled, kept or not: half the questions never have a success.
        assert 0 < metrics["rollout/signal_groups"] < 1
        assert metrics["rollout/reward"] < rewards.mean()
        assert metrics["optim/grad_norm"] > 0
    # Every round is a whole batch, so that further ones run the programs of the first.
    for program in calls.values():
        assert program.function._cache_size() == len(program.shapes) <= 2 < program.count


@pytest.mark.heavy
def test_rewards_that_are_always_equal_end_it_after_its_rounds_and_are_warned_of_once(
    model, tmp_path, capsys
):
    train_job.run(of(model, tmp_path / "run", "grpo", rounds=2, mixed_every=0, steps=3))
    assert [m["rollout/sampling_rounds"] for m in of_training(tmp_path / "run")] == [3, 3, 3]
    assert not rewards_by_group(tmp_path / "run").any()
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == 1 and said[0].startswith("warning: step 1: rewards are flat")
    assert "rollout.dynamic_sampling_rounds" in said[0]


@pytest.mark.heavy
def test_two_steps_and_two_resumed_equal_four_to_the_byte(model, tmp_path):
    with runs.compiled_once():
        train_job.run(of(model, tmp_path / "whole", "grpo", rounds=3))
        train_job.run(of(model, tmp_path / "parts", "grpo", rounds=3, steps=2))
        train_job.run(of(model, tmp_path / "parts", "grpo", rounds=3, resume=True))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rounds = [m["rollout/sampling_rounds"] for m in of_training(whole)]
    assert max(rounds[:2]) > 1  # the position that is resumed from is not the step's number
    assert (whole / "rollouts.jsonl").read_bytes() == (parts / "rollouts.jsonl").read_bytes()
    for file in (whole / "model").iterdir():
        assert (parts / "model" / file.name).read_bytes() == file.read_bytes(), file.name


def group(name, *rewards):
    empty = np.zeros(1, np.int32)
    drawn = Completion(tokens=empty, logprobs=np.zeros(1, np.float32), text="", finish="stop")
    return Group(
        example=Example(id=name, messages=(), answer="", task=""),
        prompt=empty,
        completions=(drawn,) * len(rewards),
        grades=tuple(Grade(reward=r, correct=r > 0) for r in rewards),
    )


def filled(rounds, further):
    """Returns (ids of the step's groups, rounds, groups sampled) for rounds like "ab" and "Cd".

    Capitals have a signal.
    """
    groups = [[group(name, 0.0, float(name.isupper())) for name in names] for names in rounds]
    made = collect.fill(
        groups.__getitem__, lambda g: g.grades[0].reward != g.grades[1].reward, further
    )
    return "".join(g.example.id for g in made.groups), made.rounds, len(made.sampled)


def test_groups_with_a_signal_keep_their_place_and_surplus_ones_are_dropped():
    assert filled(["ABC"], 5) == ("ABC", 1, 3)
    assert filled(["aBc", "DEF", "GHI"], 5) == ("DBE", 2, 6)
    assert filled(["aBc", "deF", "ghI", "JKL"], 5) == ("FBI", 3, 9)


def test_without_further_rounds_a_step_is_what_was_sampled_first():
    assert filled(["aBc"], 0) == ("aBc", 1, 3)
    assert filled(["aBc", "def", "Ghi"], 2) == ("GBc", 3, 9)


def test_every_round_of_every_step_has_its_own_key_and_the_first_that_of_a_plain_run():
    root = jax.random.key(7)
    keys = {
        (step, r): jax.random.key_data(collect.round_key(root, step, r)).tobytes()
        for step in range(20)
        for r in range(20)
    }
    assert len(set(keys.values())) == len(keys)
    plain = jax.random.key_data(jax.random.fold_in(root, 3)).tobytes()
    assert keys[3, 0] == plain


def test_a_group_of_one_has_no_rewards_that_differ():
    with pytest.raises(config.UserError, match=r"rollout.dynamic_sampling_rounds is 2: must be 0"):
        config.Train(
            out="",
            task=Letters(),
            rollout=config.Rollout(group_size=1, dynamic_sampling_rounds=2),
            loss=config.Loss(distillation=0.0),
        )
    with pytest.raises(config.UserError, match=r"rollout.dynamic_sampling_rounds is -1"):
        config.Rollout(dynamic_sampling_rounds=-1)
