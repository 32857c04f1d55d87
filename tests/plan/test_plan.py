"""The plan job: arithmetic, search, reports of compiled programs, and errors in one line."""

import json
import re
from dataclasses import replace

import jax
import marks
import other_process
import pytest
import tiny
from paths import ROOT
from planned import model, step_of, training

from sdjax import config
from sdjax.bench import peaks
from sdjax.errors import TOO_LARGE, UserError
from sdjax.jobs import plan_job
from sdjax.main import main
from sdjax.parallel import mesh as meshes
from sdjax.plan import hlo, memory, programs, search, seconds, slices, traffic, workload
from sdjax.rollout.engine.generation import Schedule

PAPER = ROOT / "configs" / "math" / "sdpo_qwen3_8b.py"
QUIET = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        (training(), model()),
        (training(loss={"chunk_tokens": 512}), model(vocab_size=65_536)),
        (training(teacher={"kind": "live"}), model(num_layers=12)),
        (training(lora={"rank": 8}), replace(model(), lora=config.Lora(rank=8))),
    ],
    ids=["layers and head", "a large vocabulary", "no copy of the teacher", "adapters"],
)
def test_bytes_by_arithmetic_are_those_that_the_compiler_gives_a_cpu(cfg, shape):
    w = step_of(cfg, shape)
    compiled = programs.train_step(w, meshes.over(jax.devices()[:1], (1, 1, 1, 1)))
    assert memory.update(w).total == pytest.approx(compiled.total, rel=0.15)


@pytest.mark.heavy
def test_another_model_that_teaches_has_its_bytes_and_its_time(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    fields = tiny.config("llama", **sizes, **heads, vocab_size=16_384)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    own = step_of(training(teacher={"kind": "live"}), model())
    other = step_of(training(teacher={"kind": "model", "path": str(tmp_path)}), model())
    compiled = programs.train_step(other, meshes.over(jax.devices()[:1], (1, 1, 1, 1)))
    assert memory.update(other).total == pytest.approx(compiled.total, rel=0.15)
    entries = memory.params(*other.taught_by)
    assert memory.update(other).by_use["teacher"] == 4 * entries > 4 * 6 * 1024 * 3072
    assert memory.rollout(other).by_use["teacher"] == 4 * entries
    on_host = training(teacher={"kind": "model", "path": str(tmp_path), "location": "host"})
    assert "teacher" not in memory.rollout(step_of(on_host, model())).by_use
    piece = slices.parse("h100:1")
    one, two = (seconds.by_phase(w, piece) for w in (own, other))
    assert two["update"] > 1.2 * one["update"] and two["decode"] == one["decode"]
    assert (
        traffic.update(step_of(on_host, model(), (1, 2, 1)))["weights"]
        > 1.5
        * (
            traffic.update(step_of(training(teacher={"kind": "live"}), model(), (1, 2, 1)))[
                "weights"
            ]
        )
    )


def test_bytes_of_a_gpu_and_seconds_of_a_step_are_near_those_measured():
    # Measured on one H100: dev/log/2026-11-performance.md.
    from sdjax.models.files import published

    shape = published.read_config("Qwen/Qwen3-1.7B")
    base = training(
        rollout={"group_size": 8, "max_prompt_tokens": 128, "max_completion_tokens": 512},
        reprompt={"max_tokens": 640},
        teacher={"dtype": "bfloat16"},
    )
    for microbatch, chunk, measured in ((16, 1024, 36.1e9), (16, 512, 35.1e9)):
        cfg = replace(
            base,
            optim=replace(base.optim, microbatch=microbatch),
            loss=replace(base.loss, chunk_tokens=chunk),
        )
        on = workload.MeshSizes(data=1, fsdp=1, tensor=1, rollout_tensor=0)
        w = workload.make(cfg, shape, on, slots=64, mean_prompt=128, mean_completion=512)
        assert memory.update(w).total == pytest.approx(measured, rel=0.06)
    parts = seconds.by_phase(w, slices.parse("h100:1"))
    assert parts["update"] == pytest.approx(1.73, rel=0.3)
    assert parts["decode"] == pytest.approx(1.83, rel=0.3)


@pytest.mark.heavy
def test_collectives_of_a_program_are_counted_as_often_as_its_loops_run():
    other_process.on_eight_devices("import test_plan; test_plan.count_collectives()")


def count_collectives():
    """Runs in the subprocess: 5 sums of 4 MB over 4 devices, one gather of 1 MB over 8."""
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = meshes.over(jax.devices(), (2, 1, 4, 1))

    def shard(x, y):
        for_all = jax.lax.fori_loop(0, 5, lambda i, t: t + jax.lax.psum(t * i, "fsdp"), x)
        return for_all, jax.lax.all_gather(y, ("data", "fsdp"), tiled=True)

    def args(spec, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    everywhere = P(("data", "fsdp"))
    f = jax.jit(
        jax.shard_map(
            shard, mesh=mesh, in_specs=(P(), everywhere), out_specs=(P(), P()), check_vma=False
        )
    )
    text = f.lower(args(P(), 1024, 1024), args(everywhere, 256, 1024)).compile().as_text()
    found = hlo.by_kind(hlo.collectives(text, 8))
    assert found == {"all-reduce": 5 * 2 * 3 / 4 * 2**22, "all-gather": 7 / 8 * 2**20}, found


FUSED = """\
%all-reduce-scatter.1 (a: bf16[64,8], b: bf16[32]) -> (bf16[16,8], bf16[8]) {
  %a = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32]{0} parameter(1)
  %all-reduce.1 = (bf16[64,8]{1,0:T(8,128)(2,1)}, bf16[32]{0}) all-reduce(%a, %b), channel_id=1, \
replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %of_a = bf16[64,8]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce.1), index=0
  %first = u32[] multiply(%id, %rows)
  %slice.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%of_a, %first, %zero)
  %of_b = bf16[32]{0} get-tuple-element(%all-reduce.1), index=1
  SECOND
  ROOT %both = (bf16[16,8]{1,0}, bf16[8]{0}) tuple(%slice.1, %slice.2)
}

ENTRY %main (a: bf16[64,8], b: bf16[32]) -> (bf16[16,8], bf16[8]) {
  ROOT %fusion = (bf16[16,8]{1,0}, bf16[8]{0}) fusion(%a, %b), kind=kCustom, \
calls=%all-reduce-scatter.1
}
"""


def test_a_sum_of_which_a_fusion_keeps_parts_is_a_reduce_scatter():
    parts = FUSED.replace("SECOND", "%slice.2 = bf16[8]{0} dynamic-slice(%of_b, %first)")
    (found,) = hlo.collectives(parts, 8)
    assert (found.kind, found.group) == ("reduce-scatter", 4)
    assert found.bytes == 3 / 4 * 2 * (64 * 8 + 32)
    # A result that is kept whole, as in a fusion of other work, stays an all-reduce.
    whole = FUSED.replace("SECOND", "%slice.2 = bf16[32]{0} negate(%of_b)")
    (found,) = hlo.collectives(whole, 8)
    assert found.kind == "all-reduce" and found.bytes == 2 * 3 / 4 * 2 * (64 * 8 + 32)


def test_the_search_takes_the_smallest_slice_that_arithmetic_says_will_do():
    from sdjax.models.files import published

    cfg = plan_job.training(str(PAPER))
    shape = published.read_config("Qwen/Qwen3-8B")
    pieces = slices.ladder(slices.CHIPS["v5e"])
    found = search.smallest(cfg, shape, pieces, (256, 10_240), lambda _: True)
    assert found is not None and seconds.fits(found.work, found.piece)
    smaller = [p for p in pieces if p.chips < found.piece.chips]
    assert smaller and not any(search.candidates(cfg, shape, p, (256, 10_240)) for p in smaller)
    # The result is a config that a training accepts.
    w = found.work
    data, _, fsdp, tensor = meshes.sizes(search.as_config(w.mesh), found.piece.chips)
    assert data * fsdp * tensor == found.piece.chips and w.microbatch % (data * fsdp) == 0
    # The search skips a candidate that the compiler refuses.
    tried = []

    def only_the_second(candidate):
        tried.append(candidate)
        return len(tried) == 2

    assert search.smallest(cfg, shape, pieces, (256, 10_240), only_the_second) is tried[1]


def test_a_plan_that_does_not_fit_says_what_would(tmp_path, capsys):
    argv = [
        *("--config", str(ROOT / "configs/plan.py"), "--train", str(PAPER)),
        *("--topology", "v6e:4x4", "--no_compile", "--out", str(tmp_path)),
        *("--change", "mesh.fsdp=16", "optim.microbatch=16"),
    ]
    assert main(argv) == TOO_LARGE
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert not made["fits"] and any("mesh.tensor" in change for change in made["changes"])
    said, error = capsys.readouterr()
    assert error == f"sdjax: {PAPER} does not fit v6e:4x4: see {tmp_path / 'plan.md'}\n"
    assert "does not fit v6e:4x4" in said and said in (tmp_path / "plan.md").read_text()
    # With the first change that is marked "fits", the training fits.
    change = next(c for c in made["changes"] if c.endswith(", fits")).split(":")[0]
    names = change.split(" (")[0].replace("--", "").split()
    pairs = [f"{n}={v}" for n, v in zip(names[::2], names[1::2], strict=True)]
    assert main([*argv[:-2], "--change", *dict.fromkeys(pairs)]) == 0
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert made["fits"], change


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--topology", "v9:2x2"], ["topology is 'v9:2x2'", "v5p"]),
        (["--topology", "v5e:two"], ["topology is 'v5e:two'", "v5e:4x4"]),
        (["--topology", "h100:4x4"], ["topology is 'h100:4x4'", "h100:4"]),
        (["--train", "configs/export.py"], ["train is 'configs/export.py'", "Export"]),
        (["--train", "configs/nothing.py"], ["configs/nothing.py", "no such config file"]),
        (["--change", "optim.microbatch"], ["change is 'optim.microbatch'", "NAME=VALUE"]),
        (["--change", "optim.microbach=8"], ["optim.microbach", "microbatch"]),
        (["--change", "rollout.slots=3"], ["rollout.slots is 3", "multiple of 64"]),
        (["--topology", "v5p:2x2"], ["topology is 'v5p:2x2'", "v5p:2x4x4"]),
        (["--topology", "v5p-16"], ["topology is 'v5p-16'", "v5p:2x2x2"]),
        (["--change", "mesh.fsdp=3"], ["mesh", "64"]),
        (["--change", "model.path=nowhere/at-all.gguf"], ["model.path", "nowhere"]),
    ],
)
def test_a_mistake_in_a_plan_is_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "plan"
    argv = ["--config", "configs/plan.py", "--no_compile", "--out", str(out), *args]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in says), line
    assert not (out / "plan.json").exists()


def planned_by_arithmetic(out, *args):
    """Returns the exit code of a plan without compiling, and the plan."""
    plan = ("--config", str(ROOT / "configs/plan.py"), "--train", str(PAPER), "--no_compile")
    code = main([*plan, "--out", str(out), *args])
    file = out / "plan.json"
    return code, json.loads(file.read_text())["plans"] if file.exists() else []


def test_a_search_that_finds_no_slice_ends_with_the_code_of_what_does_not_fit(tmp_path, capsys):
    assert planned_by_arithmetic(tmp_path, "--topology", "v5e:2x2", "--search") == (TOO_LARGE, [])
    said = capsys.readouterr().err
    assert "topology is 'v5e:2x2': no slice up to it holds" in said and said.count("\n") == 1


def test_a_microbatch_that_the_mesh_does_not_divide_is_advice(tmp_path, capsys):
    args = ("--topology", "v5p:4x4x4", "--change", "optim.microbatch=8")
    code, (made,) = planned_by_arithmetic(tmp_path, *args)
    assert code == TOO_LARGE and made["fits"]
    assert (made["microbatch"], made["needs"]) == (64, ["--optim.microbatch 64"])
    assert "needs --optim.microbatch 64" in capsys.readouterr().err


CHIPS = [name for name, chip in slices.CHIPS.items() if chip.is_tpu or name == "h100"]


@pytest.mark.parametrize("chip", marks.heavy_but(["v5e", "h100"], CHIPS))
def test_a_chip_is_planned_and_searched_by_arithmetic(chip, tmp_path):
    largest = f"{chip}:{slices.CHIPS[chip].shapes[-1]}"
    code, (made,) = planned_by_arithmetic(tmp_path / "a", "--topology", largest)
    assert code in (0, TOO_LARGE) and made["step_seconds"] > 0
    code, (made,) = planned_by_arithmetic(tmp_path / "b", "--topology", chip, "--search")
    assert code == 0 and made["fits"] and made["step_seconds"] > 0
    # The printed arguments are those of a training that the slice takes.
    changes = [f"--{pair}" for pair in made["chosen"].split("--")[1:]]
    pairs = [change.strip("- ").replace(" ", "=") for change in changes]
    code, (again,) = planned_by_arithmetic(
        tmp_path / "c", "--topology", made["topology"], "--change", *pairs
    )
    assert code == 0 and again["bytes"] == made["bytes"]


def test_ironwood_has_two_devices_a_chip_and_is_known_by_its_other_names():
    piece = slices.parse("tpu7x:2x2x1")
    assert (piece.chips, piece.devices) == (4, 8)
    assert {slices.parse(f"{name}:2x2x1") for name in ("Ironwood", "v7", "v7x")} == {piece}
    # Rates of a device are half of a chip's.
    assert piece.chip.rates.flops_per_s == 2307e12 / 2
    assert piece.size == "4 chips, each of 2 devices of 101.7 GB"
    assert slices.parse("v5e:1x1").size == "1 chip of 16.9 GB"
    assert "75% of 85.5 GB" in slices.parse("h100:8").size


def test_an_exchange_that_does_not_overlap_adds_to_the_arithmetic():
    w = step_of(training(), model(), mesh=(1, 4, 1))
    piece = slices.parse("v6e:2x2")
    none, half, all_ = (seconds.by_phase(w, piece, share)["update"] for share in (0.0, 0.5, 1.0))
    exchange = sum(traffic.update(w).values()) / (piece.chip.links * seconds.LINKS)
    computing = none - exchange
    assert all_ == pytest.approx(max(computing, exchange))
    assert half == pytest.approx(max(computing, exchange / 2) + exchange / 2)
    # Without a compiled program the chip's own share is taken.
    assert seconds.by_phase(w, piece)["update"] == none


STARTED = """\
%start (a: bf16[16,8]) -> (bf16[16,8], bf16[64,8]) {
  %a = bf16[16,8]{1,0} parameter(0)
  %all-gather.1 = bf16[64,8]{1,0} all-gather(%a), channel_id=3, replica_groups={{0,1,2,3}}
  ROOT %call = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (a: bf16[16,8]) -> bf16[64,8] {
  %a.1 = bf16[16,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,8]{1,0} all-gather(%a.1), channel_id=3, replica_groups={{0,1,2,3}}
}

ENTRY %main (a: bf16[16,8]) -> bf16[64,8] {
  %begun = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %got = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%done
  ROOT %plain = bf16[64,8]{1,0} all-gather(%a), channel_id=4, replica_groups={{0,1,2,3}}
}
"""


def test_a_gather_overlaps_if_the_program_starts_it_before_it_waits():
    found = hlo.collectives(STARTED, 4)
    assert [one.overlapped for one in found] == [True, False]
    assert hlo.overlap(found) == 0.5 and hlo.overlap(found[1:]) == 0 and hlo.overlap([]) == 1


@pytest.mark.heavy
def test_the_compiler_knows_every_slice_with_its_devices_and_their_memory():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install sdjax[tpu]")
    other_process.run("import test_plan; test_plan.describe_every_slice()", **QUIET)


def describe_every_slice():
    """Runs in the subprocess: no side of most slices is 2 devices long, as the tensor axis is."""
    import jax.numpy as jnp

    for chip in slices.CHIPS.values():
        for piece in slices.ladder(chip) if chip.is_tpu else ():
            if piece.devices <= 64:
                tensor = min(2, piece.devices)
                mesh = programs.topology_mesh(piece, (1, 1, piece.devices // tensor, tensor))
                assert {d.device_kind for d in mesh.devices.flat} <= set(peaks.KNOWN), piece
        if chip.is_tpu:
            one = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
            large = jax.ShapeDtypeStruct((1 << 20, 1 << 17), jnp.float32, sharding=one)
            with pytest.raises(jax.errors.JaxRuntimeError) as error:
                jax.jit(lambda x: x + 1).lower(large).compile()
            allowed = re.search(r"available HBM \(([\d.]+)G\)|of ([\d.]+)G hbm", str(error.value))
            assert allowed, error.value
            assert float(allowed[1] or allowed[2]) == pytest.approx(chip.memory / 2**30, abs=0.01)


@pytest.mark.heavy
def test_a_plan_without_the_tpu_compiler_says_how_to_install_it(tmp_path):
    out = other_process.run(
        "import sys; sys.modules['libtpu'] = None\n"
        "from sdjax.main import main\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        f"    code = main(['--config', {str(ROOT / 'configs/plan.py')!r}, '--train', "
        f"{str(PAPER)!r}, '--out', {str(tmp_path)!r}])\n"
        "print(code, said.getvalue())",
        JAX_PLATFORMS="cpu",
    )
    assert out.startswith("2 ") and "pip install 'sdjax[tpu]'" in out


TRAIN = """
from sdjax.config import *
config = Train(
    out="unused", task=TaskConfig(), model=Model(path={folder!r}),
    rollout=Rollout(prompts_per_step=16, group_size=4, max_prompt_tokens=128,
                    max_completion_tokens={completion}),
    reprompt=Reprompt(max_tokens=128 + {completion}), optim=Optim(microbatch=8),
    loss=Loss(chunk_tokens={chunk}), mesh=Mesh(fsdp={fsdp}, tensor={tensor}),
)
"""


# Small arrays, because compilation time grows with them.
SMALL = (512, 2048, {"completion": 128, "chunk": 256})
LARGE = (1024, 4096, {"completion": 384, "chunk": 512})


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("topology", "fsdp", "tensor", "sizes"),
    [
        pytest.param("v5e:2x2", 4, 1, SMALL, marks=pytest.mark.slow),
        pytest.param("v5e:2x4", 8, 1, LARGE, marks=pytest.mark.slow),
        pytest.param("v5e:2x4", 4, 2, LARGE, marks=pytest.mark.slow),
    ],
    ids=["fsdp", "a larger fsdp", "fsdp and tensor"],
)
def test_a_plan_compiles_for_a_slice_and_its_traffic_is_that_of_the_formula(
    topology, fsdp, tensor, sizes, tmp_path
):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install sdjax[tpu]")
    folder = tmp_path / "model"
    folder.mkdir()
    embed, vocabulary, lengths = sizes
    shape = {
        "hidden_size": embed, "intermediate_size": 2 * embed, "num_hidden_layers": 2,
        "num_attention_heads": embed // 128, "num_key_value_heads": embed // 256, "head_dim": 128,
        "vocab_size": vocabulary, "max_position_embeddings": 2048,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(tiny.config("qwen3", **shape)))
    train = tmp_path / "train.py"
    train.write_text(TRAIN.format(folder=str(folder), fsdp=fsdp, tensor=tensor, **lengths))
    other_process.run(
        "from sdjax.main import main\n"
        f"assert main(['--config', {str(ROOT / 'configs/plan.py')!r}, '--train', {str(train)!r}, "
        f"'--topology', {topology!r}, '--out', {str(tmp_path)!r}]) == 0",
        XLA_FLAGS="",
        **QUIET,
    )
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    by_name = {one["name"]: one for one in made["compiled"]}
    assert made["fits"] and set(by_name) == {"update", "prefill", "decode"}
    assert not any(one["rematerialized"] for one in by_name.values())
    # The state takes 14 bytes per parameter; the compiler's arguments also hold the batch.
    state = sum(made["bytes"]["update"][use] for use in ("parameters", "Adam", "teacher"))
    assert by_name["update"]["arguments"] == pytest.approx(state, rel=0.1)
    moved, said = by_name["update"]["traffic"], made["traffic_bytes_an_update"]
    summed = moved["all-reduce"] + moved["reduce-scatter"]
    assert summed == pytest.approx(said["gradients"] + said["activations"] / 2, rel=0.25)
    # A ring exchange during a matrix product sends shards in both directions.
    gathered = moved["all-gather"] + moved.get("collective-permute", 0.0)
    assert 0.7 < gathered / (said["weights"] + said["activations"] / 2) < 1.8
    # Rollouts keep weights whole or split by heads, so decoding moves none. Each layer sums hidden
    # states over tensor twice, in float32, for every slot of a copy.
    slots = made["slots"] * tensor / made["chips"]
    sums = Schedule().steps * 2 * 2 * slots * embed * 4 * 2 * (tensor - 1) / tensor
    assert sum(by_name["decode"]["traffic"].values()) - sums < 0.1 * 2 * 4e6 * made["chips"]


@pytest.mark.heavy
def test_of_several_slices_data_runs_from_one_to_the_next():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install sdjax[tpu]")
    other_process.run("import test_plan; test_plan.make_two_slices()", **QUIET)


def make_two_slices():
    """Runs in the subprocess."""
    two = slices.parse("v5e:2x2", 2)
    mesh = programs.topology_mesh(two, (2, 2, 2))
    of_replicas = [{d.slice_index for d in part.flat} for part in mesh.devices]
    assert of_replicas == [{0}, {1}]
    # Rollouts use the same devices in the same order, so that one program moves the weights.
    rollouts = meshes.for_rollouts(mesh, 4)
    assert rollouts.shape == {"data": 2, "expert": 1, "fsdp": 1, "tensor": 4}
    assert list(rollouts.devices.flat) == list(mesh.devices.flat)
    with pytest.raises(UserError, match=r"mesh\.data is 1: must be a multiple of the 2 slices"):
        programs.topology_mesh(two, (1, 4, 2))
