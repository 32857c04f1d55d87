"""Adapters learn as the low-rank product does, and the model below them stays unchanged."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import learning
import ml_dtypes
import numpy as np
import other_process
import pytest
import tiny
from flax import nnx
from learning import PLAIN
from runs import lines
from safetensors.numpy import load_file
from sums import job

from sdjax import config
from sdjax.errors import UserError
from sdjax.jobs import export_job, train_job
from sdjax.models.files import peft, tensors, weights
from sdjax.models.network import lora, transformer
from sdjax.models.network.layer import LayerWeights

pytestmark = pytest.mark.usefixtures("compiled_once")

LORA = config.Lora(rank=4, alpha=8.0)
ADAPTED = replace(learning.CFG, lora=LORA)
SCALE = LORA.alpha / LORA.rank


def learner(mesh=(1, 1, 1), shape=ADAPTED, **sections):
    cfg = learning.train_config(lora={"rank": 4, "alpha": 8.0}, **sections)
    return learning.Learner(cfg, learning.make_mesh(*mesh), shape)


def dense(params):
    """Returns the params of a model without adapters that computes the same results."""
    return lora.without_adapters(jax.device_put(params), ADAPTED)


def step_of(params, mesh=(1, 1, 1), **sections):
    """Returns the metrics of one update, the change of the params, and the learner."""
    cfg = learning.train_config(**sections)
    one = learning.Learner(cfg, learning.make_mesh(*mesh))
    like = one.state.params
    given = jax.tree.map(lambda x, y: jax.device_put(np.asarray(y), x.sharding), like, params)
    one.state = replace(one.state, params=given)
    if one.state.teacher_params is not None:
        one.state = replace(one.state, teacher_params=jax.tree.map(jnp.array, given))
    metrics = one.update(learning.pack(cfg))
    return metrics, jax.tree.map(lambda a, b: a - np.asarray(b), one.params(), params), one


def taught(kind, scale, doubled=False):
    """Returns what the teacher says of each token, where the student's adapters may be doubled."""
    how = {"teacher": {"kind": kind}}
    if scale != 1:
        how["teacher"]["adapter_scale"] = scale
    one = learner(**how)
    if doubled:
        twice = lora.scaled(one.state.params, 2.0)
        one.state = replace(one.state, params=twice)
    one.update(learning.pack(one.cfg))
    return one.record.teacher_logprob


@pytest.mark.heavy
def test_the_teachers_adapters_are_scaled_and_the_students_are_not():
    one = taught("live", 1)
    twice = taught("live", 2.0)
    np.testing.assert_allclose(twice, taught("live", 1, doubled=True), rtol=1e-5, atol=1e-6)
    assert np.abs(twice - one).max() > 0.01
    np.testing.assert_allclose(taught("live", 0.0), taught("initial", 1), rtol=1e-5, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize(("loss", "remat"), [({}, "full"), ({"distillation": 0.0}, "dots")])
def test_adapters_get_the_gradient_of_the_low_rank_product(loss, remat):
    how = {"optim": PLAIN, "loss": loss, "teacher": {"kind": "live"}, "model": {"remat": remat}}
    one = learner(shape=replace(ADAPTED, remat=remat), **how)
    before, params = one.params(), jax.device_get(one.state.model_params())
    metrics = one.update(learning.pack(one.cfg))
    assert metrics["optim/grad_norm"] > 1e-4
    got = jax.tree.map(lambda a, b: a - b, one.params(), before)
    whole, added, _ = step_of(dense(params), **how)
    for name in whole.keys() - {"optim/grad_norm"}:
        np.testing.assert_allclose(metrics[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name, (a, b) in lora.pairs(params[lora.NAME]).items():
        grad = added["layers"][name].get_value()
        rank, layers = LORA.rank, grad.shape[0]
        flat = grad.reshape(layers, np.prod(a.shape[1:-1]), -1)
        of_a = SCALE * flat @ b.reshape(layers, rank, -1).swapaxes(1, 2)
        of_b = SCALE * a.reshape(layers, -1, rank).swapaxes(1, 2) @ flat
        for part, want in (("a", of_a), ("b", of_b)):
            found = got[lora.NAME][f"{name}_{part}"].get_value().reshape(want.shape)
            np.testing.assert_allclose(found, want, rtol=1e-3, atol=2e-4 * np.abs(want).max())


@pytest.mark.heavy
def test_an_initial_teacher_is_the_model_without_adapters():
    one = learner()
    assert one.state.teacher_params is None
    base = jax.device_get(lora.split(one.state.model_params())[1])
    one.update(learning.pack(one.cfg))
    *_, alone = step_of(base)
    np.testing.assert_allclose(
        one.record.teacher_logprob, alone.record.teacher_logprob, rtol=1e-4, atol=1e-4
    )
    assert np.abs(one.record.student_logprob - alone.record.student_logprob).max() > 0.1


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["ema", "trust_region"])
def test_every_other_teacher_runs_with_adapters_and_keeps_no_copy_of_the_model(kind):
    one = learner(teacher={"kind": kind, "ema_rate": 0.25})
    before = one.params()
    one.update(learning.pack(one.cfg))
    moved = one.params()
    with jax.set_mesh(one.mesh):
        one.state = one.after(one.state)
    if kind != "ema":
        assert one.state.teacher_params is None
        return
    for t, b, m in zip(
        *map(jax.tree.leaves, (one.state.teacher_params, before, moved)), strict=True
    ):
        np.testing.assert_allclose(t, 0.75 * b + 0.25 * m, rtol=1e-6, atol=1e-7)


@pytest.mark.heavy
def test_updates_lower_the_loss_and_leave_the_model_below_as_it_was():
    model = replace(ADAPTED, compute_dtype="bfloat16")
    one = learner(shape=model, optim={"lr": 3e-3})
    before = jax.device_get(one.state.frozen)
    batch = learning.pack(one.cfg)
    losses = [one.update(batch)["loss/total"] for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    for a, b in zip(*map(jax.tree.leaves, (jax.device_get(one.state.frozen), before)), strict=True):
        assert a.dtype == jnp.bfloat16 and a.tobytes() == b.tobytes()
    kept = sum(x.size for x in jax.tree.leaves(one.state.opt_state))
    assert kept == 1 + 2 * sum(x.size for x in jax.tree.leaves(one.state.params))


@pytest.mark.heavy
def test_adapters_learn_the_same_on_a_mesh():
    other_process.on_eight_devices("import test_lora; test_lora.compare_with_one_device()")


def compare_with_one_device():
    """Asserts, in a subprocess, that a mesh changes no metric, gradient or checksum."""
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        one = learner(mesh=shape, optim=PLAIN)
        metrics = one.update(learning.pack(one.cfg))
        results.append((metrics, one.params(), lora.checksum(one.state.frozen)))
    (metrics, params, checksum), (others, other_params, other_checksum) = results
    assert checksum == other_checksum
    for key in metrics:
        np.testing.assert_allclose(others[key], metrics[key], rtol=1e-4, atol=1e-6, err_msg=key)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_decoding_reads_the_weights_that_training_computes_with():
    model = replace(ADAPTED, compute_dtype="bfloat16")
    one = learner(shape=model)
    graphdef = one.graphdef
    params = one.state.model_params()
    made = jax.jit(lambda p: transformer.decode_weights(nnx.merge(graphdef, p)))(params)
    base = LayerWeights.of({k: v.get_value()[1] for k, v in params["layers"].items()})
    second = {k: (a[1], b[1]) for k, (a, b) in lora.pairs(params[lora.NAME]).items()}
    want = jax.jit(lambda: lora.merged(base, second, model))()
    for a, b in zip(*map(jax.tree.leaves, (made.layers[1], want)), strict=True):
        assert a.dtype == jnp.bfloat16
        # The sums are float32. Only those near the middle of two bfloat16 round differently.
        assert np.mean(np.asarray(a) != np.asarray(b)) < 1e-2
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2**-7)


def test_a_checksum_tells_values_and_places_apart():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(ml_dtypes.bfloat16)

    def of(array):
        return lora.checksum(nnx.State({"w": nnx.Param(jnp.array(array))}))

    other = x.copy()
    other[3, 5] = np.nextafter(other[3, 5], ml_dtypes.bfloat16(9))
    turned = x[::-1].copy()
    assert len({of(x), of(other), of(turned)}) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the model folder and the directory of a finished run with adapters, in bfloat16."""
    model = tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")
    out = tmp_path_factory.mktemp("run") / "lora"
    train_job.run(adapted(model, out))
    return model, out


def adapted(model, out, **changes):
    cfg = job(model, out, lora={"rank": 4, "alpha": 8.0}, optim={"lr": 1e-2}, **changes)
    return replace(cfg, model=replace(cfg.model, compute_dtype="bfloat16", remat="full"))


@pytest.mark.heavy
def test_a_run_exports_the_merged_model_and_the_adapters_for_peft(run):
    model, out = run
    merged = {k: v for f in (out / "model").glob("*.safetensors") for k, v in load_file(f).items()}
    base = {k: v for f in model.glob("*.safetensors") for k, v in load_file(f).items()}
    adapters = load_file(out / "model_adapter" / "adapter_model.safetensors")
    said = json.loads((out / "model_adapter" / "adapter_config.json").read_text())
    assert merged.keys() == base.keys() and said["base_model_name_or_path"] == str(model)
    assert len(adapters) == 2 * 2 * 7 and set(said["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert said["revision"] is None
    assert (out / "model_adapter" / "tokenizer_config.json").exists()
    scale = said["lora_alpha"] / said["r"]
    for name, array in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        want = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        if f"{stem}.lora_A.weight" in adapters:
            added = adapters[f"{stem}.lora_B.weight"] @ adapters[f"{stem}.lora_A.weight"]
            assert np.abs(added).max() > 0
            want = want + scale * added
        got = merged[name].astype(np.float32)
        np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e5, "float16")])
def test_adapters_that_are_not_finite_are_not_exported(model, tmp_path, value, dtype):
    cfg = weights.read_config(model, compute_dtype="float32", lora=config.Lora(rank=2))
    params = weights.load(model, cfg)
    params[lora.NAME] = jax.tree.map(lambda x: jnp.full_like(x, value), params[lora.NAME])
    with pytest.raises(UserError, match=rf"holds NaN or infinity as {dtype}: take an earlier"):
        peft.export(params, cfg, "base", model, tmp_path / "adapter", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_a_checkpoint_holds_adapters_only(run):
    _, out = run
    said = json.loads((out / "checkpoints" / "4" / "state" / "_METADATA").read_text())
    names = said["tree_metadata"]  # such as ('params', 'adapters', 'q_a', 'value')
    arrays = [name for name in names if name.endswith("'value')")]
    assert len(arrays) == 3 * 14 and all("'adapters'" in name for name in arrays)


@pytest.mark.heavy
def test_a_resumed_run_with_adapters_equals_an_uninterrupted_one(run, tmp_path):
    model, out = run
    train_job.run(adapted(model, tmp_path / "half", steps=2))
    train_job.run(adapted(model, tmp_path / "half", resume=True))
    name = "model_adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "half" / name).read_bytes()
    assert [r["tokens"] for r in lines(out / "rollouts.jsonl")] == [
        r["tokens"] for r in lines(tmp_path / "half" / "rollouts.jsonl")
    ]


@pytest.mark.heavy
def test_adapters_are_not_put_onto_another_model(run, tmp_path):
    _, out = run
    other = tiny.model_folder(tmp_path / "other", seed=1)
    job_of = config.Export(run=str(out), out=str(tmp_path / "a"))
    export_job.run(job_of)
    name = "adapter_model.safetensors"
    again = (tmp_path / "a_adapter" / name).read_bytes()
    assert again == (out / "model_adapter" / name).read_bytes()
    said = json.loads((out / "config.json").read_text())
    said["model"]["path"] = str(other)
    (out / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="are not those that the checkpoint's adapters"):
        export_job.run(replace(job_of, out=str(tmp_path / "b")))
    assert not (tmp_path / "b").exists()


def test_only_named_matrices_get_adapters():
    cfg = replace(ADAPTED, lora=config.Lora(rank=2, matrices=("q", "v")))
    assert config.Lora(rank=2, matrices=("q_proj", "v")) == cfg.lora  # the names of PEFT
    trained, _ = lora.split(weights.abstract_params(cfg))
    assert set(trained[lora.NAME]) == {"q_a", "q_b", "v_a", "v_b"}
    assert {t.path[-1] for t in tensors.of(cfg)} >= {"q", "v"}


@pytest.mark.heavy
@pytest.mark.parametrize("matrices", [config.Lora().matrices, ("v", "down", "up")])
def test_adapters_of_fused_matrices_load_into_peft(matrices, tmp_path):
    library, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    folder = tiny.model_folder(tmp_path / "model", "phi3")
    how = config.Lora(rank=2, alpha=6.0, matrices=matrices)
    cfg, graph, params = tiny.load(folder, lora=how, remat="none")
    drawn = np.random.default_rng(0)
    params[lora.NAME] = jax.tree.map(
        lambda x: jnp.asarray(drawn.standard_normal(x.shape) / 5, x.dtype), params[lora.NAME]
    )
    peft.export(params, cfg, str(folder), folder, tmp_path / "adapter")
    tokens = drawn.integers(0, cfg.vocab_size, (2, 9)).astype(np.int32)
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
    model = nnx.merge(graph, params)
    hidden = transformer.hidden_states(model, tokens, positions, None)
    ours = np.asarray(transformer.logits(hidden, transformer.head_weight(model)))
    base = tiny.torch_model(folder)
    with torch.no_grad():
        ids = torch.tensor(tokens, dtype=torch.long)
        without = base(ids).logits.numpy()
        adapted = library.PeftModel.from_pretrained(base, tmp_path / "adapter")
        theirs = adapted(ids).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(ours - without).max() > 0.1
