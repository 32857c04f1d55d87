"""The bench job on a tiny model, and how much work it says a model takes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sdjax import config
from sdjax.bench import peaks, synthetic
from sdjax.bench.bench_rows import BenchRow
from sdjax.bench.timing import Timing
from sdjax.config import UserError
from sdjax.jobs import bench_job
from sdjax.models import flops
from sdjax.models.families import registry
from sdjax.models.files import published
from sdjax.plan import memory

TINY = config.Shape(
    vocab_size=96,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=256,
)
# H 4, K 2, h 4, D 8, F 12: (2 x 4 + 2 x 2) x 4 x 8 + 3 x 8 x 12
LAYER = 384 + 288


def tiny(**changes):
    return replace(
        config.Bench(
            out="unused",
            shape=TINY,
            model=config.Model(compute_dtype="float32"),
            prompts=(2,),
            group_size=2,
            prompt_tokens=6,
            completion_tokens=40,
            reprompt_tokens=20,
            repeats=2,
            optim=config.Optim(microbatch=2),
        ),
        **changes,
    )


def model(**changes):
    return registry.from_hf(
        {f: getattr(TINY, f) for f in TINY.__dataclass_fields__}, compute_dtype="float32", **changes
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Returns bench.json of every phase."""
    out = tmp_path_factory.mktemp("bench")
    phases = ("rollout", "update", "head", "tail")
    bench_job.run(tiny(out=str(out), phases=phases, profile=str(out / "profile")))
    return out, json.loads((out / "bench.json").read_text())


@pytest.mark.heavy
def test_every_phase_has_a_row_with_finite_figures(measured):
    _, made = measured
    rows = {row["phase"]: row for row in made["rows"]}
    assert list(rows) == [
        *("prefill", "decode", "rollout", "pack", "update", "step", "head"),
        *("tail: plain loop", "tail: engine"),
    ]
    for row in rows.values():
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, int | float))
        assert len(row["seconds_of_each"]) == 2
    for phase in ("rollout", "update", "step", "head", "tail: plain loop", "tail: engine"):
        assert rows[phase]["tokens_per_s"] > 0 and rows[phase]["compile_s"] >= 0
    assert rows["update"]["mfu"] > 0 and rows["update"]["hfu"] > rows["update"]["mfu"]
    assert rows["head"]["mfu"] == rows["head"]["hfu"] > 0
    whole = [
        sum(parts)
        for parts in zip(
            *(rows[p]["seconds_of_each"] for p in ("rollout", "pack", "update")), strict=True
        )
    ]
    np.testing.assert_allclose(rows["step"]["seconds_of_each"], whole)
    assert rows["step"]["tokens"] == 2 * 2 * 40 and rows["tail: plain loop"]["sequences"] == 16


@pytest.mark.heavy
def test_a_figure_stands_beside_what_it_must_be_read_with(measured):
    _, made = measured
    assert made["command"].startswith("python -m sdjax.main")
    assert made["device"] == "cpu" and made["devices"] >= 1 and made["jax"]
    assert "measured in this run" in made["peak_source"] and made["peak_flops_per_s"] > 1e8
    assert made["config"]["shape"]["hidden_size"] == 8


@pytest.mark.heavy
def test_an_update_alone_needs_no_rollout(tmp_path):
    out = str(tmp_path)
    bench_job.run(tiny(out=out, phases=("update",), measure=False, repeats=1))
    made = json.loads((tmp_path / "bench.json").read_text())
    assert [row["phase"] for row in made["rows"]] == ["pack", "update"]
    losses = made["rows"][1]["losses"]
    assert len(losses) == 2 and losses[0] != losses[1] and all(map(math.isfinite, losses))
    assert made["peak_flops_per_s"] == 0 and made["rows"][1]["mfu"] is None


def test_what_does_not_fit_the_model_is_said_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"reprompt_tokens is 250: with 40 .* 256"):
        bench_job.run(tiny(out=str(tmp_path / "x"), reprompt_tokens=250))
    with pytest.raises(UserError, match="model_type is 'gpt'"):
        bench_job.run(tiny(out=str(tmp_path / "x"), shape=replace(TINY, model_type="gpt")))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": ()}, "phases"),
        ({"prompts": (0,)}, "prompts"),
        ({"completion_tokens": 1}, "completion_tokens is 1: must be at least 2"),
        ({"group_size": 1, "prompts": (4,)}, "group_size is 1: must be at least 2"),
        ({"optim": config.Optim(microbatch=3)}, "must divide the 4 completions"),
        ({"optim": config.Optim(minibatches=2, microbatch=2)}, "optim.minibatches is 2"),
    ],
)
def test_a_wrong_size_is_one_line(changes, said):
    with pytest.raises(UserError, match=said):
        tiny(**changes)


def test_a_token_takes_two_operations_for_each_parameter_and_four_for_each_pair():
    assert flops.layer_params(model()) == LAYER
    # A sequence of 3: 6 pairs, each 4 x H x h = 64, in 2 layers.
    assert flops.attention(model(), [3]) == 2 * 6 * 64
    assert flops.forward(model(), [3]) == 2 * 2 * LAYER * 3 + 2 * 6 * 64
    # After a cached prompt of 2 its third token sees 3.
    assert flops.forward(model(), [3], [2]) == 2 * 2 * LAYER + 2 * 3 * 64


@pytest.mark.parametrize(("length", "window"), [(5, None), (5, 2), (5, 5), (5, 9), (1, 1)])
def test_pairs_are_those_that_a_causal_window_leaves(length, window):
    seen = [(i, j) for i in range(length) for j in range(i + 1) if i - j < (window or length)]
    assert flops.pairs(length, window) == len(seen)


def test_an_update_is_three_student_forwards_one_of_the_teacher_and_the_head():
    cfg = model(remat="full")
    # Prompt 2, reprompt 4, completion 3: 15 and 28 pairs; 3 positions of the head, D 8, V 96.
    student = 2 * 2 * LAYER * 5 + 2 * 15 * 64
    teacher = 2 * 2 * LAYER * 7 + 2 * 28 * 64
    ends = 3 * 8 * 96
    assert flops.update(cfg, [2], [4], [3], teachers=1) == 3 * student + teacher + 8 * ends
    assert flops.update(cfg, [2], [4], [3], teachers=0) == 3 * student + 6 * ends
    assert flops.update(cfg, [2], [4], [3], teachers=2) == 3 * student + 2 * teacher + 10 * ends
    assert flops.recomputed(cfg, [2], [3]) == student
    assert flops.recomputed(model(remat="dots"), [2], [3]) == 2 * 15 * 64
    assert flops.recomputed(model(remat="none"), [2], [3]) == 0


def test_decoding_reads_the_weights_once_a_step_and_the_cache_of_every_sequence():
    cfg = model()
    weights = 4 * (2 * LAYER + 8 * 96)
    assert flops.weight_bytes(cfg) == weights
    # Keys and values of a token: 2 layers x 2 x K 2 x h 4 x 4 bytes.
    assert flops.cache_bytes(cfg, 1) == 128
    # Prompts of 2 and 5, two steps: caches of 3 + 4 and 6 + 7 tokens.
    assert flops.decode_bytes(cfg, [2, 5], 2) == 2 * weights + 20 * 128
    assert flops.decode_bytes(cfg, [2], 1, shards=4) == 4 * weights + 3 * 128


def test_the_figures_of_a_step_at_1_7b_are_those_of_a_hand_calculation():
    cfg = registry.from_hf(
        {f: getattr(config.Shape(), f) for f in config.Shape.__dataclass_fields__}
    )
    params = 28 * flops.layer_params(cfg) + 2048 * 151_936
    assert round(params / 1e9, 2) == 1.72
    # 64 sequences at 2.9 TB/s: 1.19 ms of weights and 0.97 ms of cache at the mean length.
    assert round(1e3 * flops.weight_bytes(cfg) / 2.9e12, 2) == 1.19
    assert round(1e3 * 64 * flops.cache_bytes(cfg, 128 + 256) / 2.9e12, 2) == 0.97


def test_experts_are_stored_whole_and_read_as_far_as_a_token_runs_them():
    cfg = published.read_config("Qwen/Qwen3-30B-A3B")
    assert (
        round(memory.params(cfg) / 1e9, 2) == 30.53 and round(memory.active(cfg) / 1e9, 2) == 3.35
    )
    # A token multiplies 8 of 128 experts of 3 x 2,048 x 768, the router and the attention.
    attention = (2 * 32 + 2 * 4) * 128 * 2048
    layer = attention + 2048 * 128 + 8 * 3 * 2048 * 768
    assert flops.active_params(cfg) == layer
    assert flops.forward(cfg, [1]) == 2 * 48 * layer + 48 * 4 * 32 * 128
    assert flops.layer_params(cfg) == layer + 120 * 3 * 2048 * 768
    # One row reads 8 experts; 64 rows hit 126 of them, if all are equally likely.
    assert flops.weight_bytes(cfg, 1) == 2 * (48 * layer + 2048 * 151_936)
    assert round(flops.experts_hit(cfg, 64)) == 126
    rows = flops.weight_bytes(cfg, 64) / 2 - 2048 * 151_936
    assert abs(rows / 48 / (layer + 118 * 3 * 2048 * 768) - 1) < 1e-3


def test_lognormal_lengths_have_their_median_and_end_at_the_limit():
    cfg = tiny(completion_tokens=4096)
    drawn = synthetic.lengths(cfg, 20_000, np.random.default_rng(0))
    # The median of 20,000 draws is known to 1.25 / sqrt(20,000) of a standard deviation: 0.9%.
    assert abs(np.median(drawn) / 512 - 1) < 0.04
    assert drawn.min() >= 1 and drawn.max() == 4096
    # ln 8 = 2.08 standard deviations.
    assert 0.01 < np.mean(drawn == 4096) < 0.03


def test_a_share_is_work_over_time_and_peak_or_nothing():
    timing = Timing(first=5.0, later=(2.0, 1.0, 4.0))
    row = BenchRow(phase="x", timing=timing, sequences=4, tokens=8, steps=4, flops=10, recomputed=2)
    made = row.to_dict(10.0, 0.0)
    assert (made["seconds"], made["compile_s"], made["ms_per_step"]) == (2.0, 3.0, 500.0)
    assert (made["tokens_per_s"], made["mfu"], made["hfu"]) == (4.0, 0.5, 0.6)
    assert made["bandwidth_share"] is None
    assert replace(row, timing=timing.less(3.0)).to_dict(1.0, 1.0)["mfu"] is None


def test_an_unknown_device_has_no_peak():
    assert peaks.known("NVIDIA H100 80GB HBM3").flops_per_s == 803e12
    assert peaks.known("abacus").flops_per_s == 0
