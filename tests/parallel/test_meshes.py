"""One GPU against meshes of two: commands, their table, and what moves between chips."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import other_process
import pytest
from paths import ROOT

from sdjax.bench import mesh_compare
from sdjax.config.load import load, override
from sdjax.errors import TOO_LARGE
from sdjax.jobs import plan_job
from sdjax.main import main
from sdjax.plan import hlo

SCRIPT = "configs/bench/meshes.sh"


def made(seconds, sequences, devices, losses=None, phases=mesh_compare.PHASES):
    rows = [
        {"phase": phase, "sequences": sequences, "seconds": seconds, "peak_bytes": 3e9}
        for phase in phases
    ]
    rows[-1]["losses"] = losses
    return {"devices": devices, "rows": rows}


def write(folder, **runs):
    for name, content in runs.items():
        (folder / name).mkdir()
        (folder / name / "bench.json").write_text(json.dumps(content))


def cells(text, name):
    """Returns the cells of the first row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_says_how_much_faster_two_are_and_how_far_their_losses_part(tmp_path, capsys):
    few = {"sequences": 8, "phases": ("update",)}
    write(
        tmp_path,
        one=made(8.0, 64, 1),
        half=made(4.4, 32, 1),
        data=made(5.0, 64, 2),
        fsdp=made(4.0, 64, 2),
        tensor=made(16.0, 64, 2),
        losses_one=made(1.0, devices=1, losses=[2.0, -4.0], **few),
        losses_data=made(0.5, devices=2, losses=[2.0, -4.0, 9.0], **few),
        losses_fsdp=made(0.5, devices=2, losses=[2.0, -4.2, 9.0], **few),
        losses_tensor=made(2.0, devices=2, losses=[2.002, -4.0, 9.0], **few),
    )
    assert mesh_compare.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert cells(said, "step, s") == "64 8.000 5.000 4.000 16.000 1.60 2.00 0.50".split()
    assert cells(said, "step, s, weak") == [
        "32 / 64",
        "4.400",
        "-",
        "-",
        "-",
        "0.88",
        "1.10",
        "0.28",
    ]
    assert "| update, s | 8 | 1.000 | 0.500 | 0.500 | 2.000 | 2.00 | 2.00 | 0.50 |" in said
    assert cells(said, "peak")[1:5] == ["3.0"] * 4
    assert cells(said, "losses of 2 updates")[2:5] == ["0.0e+00", "5.0e-02", "1.0e-03"]


def test_a_loss_that_is_not_finite_is_no_small_difference(tmp_path, capsys):
    few = {"sequences": 8, "phases": ("update",)}
    write(
        tmp_path,
        losses_one=made(1.0, devices=1, losses=[2.0, -4.0], **few),
        losses_data=made(0.5, devices=2, losses=[2.0, float("nan")], **few),
        losses_fsdp=made(0.5, devices=2, losses=[float("inf"), -4.0], **few),
    )
    mesh_compare.main([str(tmp_path)])
    assert cells(capsys.readouterr().out, "losses of 2 updates")[2:4] == ["nan", "inf"]


def test_a_run_that_is_missing_is_one_line_and_a_gap(tmp_path, capsys):
    write(tmp_path, one=made(8.0, 64, 1), fsdp=made(4.0, 64, 2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bench.json").write_text("{")
    assert mesh_compare.main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert cells(said.out, "rollout") == ["64", "8.000", "-", "4.000", "-", "-", "2.00", "-"]
    lines = said.err.splitlines()
    assert len(lines) == 7 and f"{tmp_path}/tensor/bench.json: no such file" in lines
    assert sum("data/bench.json: Expecting" in line for line in lines) == 1
    for wrong in ([str(tmp_path / "nothing")], []):
        assert mesh_compare.main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_needs_no_jax():
    other_process.run(
        "import sys; sys.modules.update(jax=None, numpy=None); import sdjax.bench.mesh_compare"
    )


def test_the_script_says_what_fails_and_goes_on(tmp_path):
    # In place of an interpreter: writes down what it is called with, and fails for one mesh.
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/bash\n"
        f'echo "$CUDA_VISIBLE_DEVICES $*" >> {tmp_path}/calls\n'
        'case "$*" in *runs/data\\ *) exit 3 ;; esac\n'
    )
    stub.chmod(0o755)
    env = os.environ | {"PYTHON": str(stub), "SMALL": "", "STAGGER": ""}
    done = subprocess.run(
        ["bash", SCRIPT, str(tmp_path / "runs")], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr
    assert "data on 0,1: rc 3" in done.stdout and "fsdp on 0,1: rc 0" in done.stdout
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    *benches, table = calls
    assert table[:2] == ["-m", "sdjax.bench.mesh_compare"]
    found = {}
    for gpus, *args in benches:
        assert args[:4] == ["-m", "sdjax.main", "--config", "configs/bench/step_1_7b.py"]
        cfg = override(load(ROOT / args[3]), args[4:], prog="bench")
        mesh = cfg.mesh
        found[Path(cfg.out).name] = (gpus, mesh.data, mesh.fsdp, mesh.tensor, cfg.optim.microbatch)
    meshes = {"data": (2, 1, 1, 32), "fsdp": (1, 2, 1, 32), "tensor": (1, 1, 2, 16)}
    for name, expected in meshes.items():
        assert found[name] == found[f"losses_{name}"] == ("0,1", *expected)
    assert found["trace_fsdp"] == found["fsdp"]
    # The two that run side by side have a GPU each.
    assert {found["one"][0], found["half"][0]} == {"0", "1"}
    named = {
        "one",
        "half",
        *mesh_compare.MESHES,
        *(f"losses_{m}" for m in ("one", *mesh_compare.MESHES)),
    }
    assert set(found) == named | {"trace_fsdp"}


def test_the_configs_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; .ci/run installs it")
    files = sorted(map(str, (ROOT / "configs").glob("**/*.sh")))
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert done.returncode == 0 and len(files) == 3, done.stdout


def test_a_plan_of_a_bench_is_one_of_its_step(tmp_path, capsys):
    argv = [
        *("--config", str(ROOT / "configs/plan.py"), "--out", str(tmp_path)),
        *("--train", str(ROOT / "configs/bench/step_8b.py"), "--topology", "h200:2", "h100:2"),
    ]
    assert main(argv) == TOO_LARGE  # on the second slice
    assert "random qwen3, 2 chips" in capsys.readouterr().out
    h200, h100 = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert h200["fits"] and not h100["fits"]
    assert h200["row_tokens"] == {"student": 640, "teacher": 1280, "completion": 512}
    # Parameters, Adam, gradients in float32 and the teacher in bfloat16, a half of each.
    assert h200["bytes"]["update"]["parameters"] == pytest.approx(8.19e9 * 4 / 2, rel=0.001)
    assert h200["bytes_by_program"]["update"] > 8.19e9 * (4 + 8 + 4 + 2) / 2
    # A whole copy of the weights in bfloat16 beside the state.
    assert h200["bytes"]["rollout"]["rollout weights"] == pytest.approx(8.19e9 * 2, rel=0.001)
    assert plan_job.training(str(ROOT / "configs/bench/step_8b.py"), ["optim.microbatch=2"]).optim


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}, use", 2),
        ("[2,4]<=[8], use", 4),
        ("mesh['a'=4,'b'=2] {'b'}, use", 2),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, use", 2),
        ("{}, use", 8),
    ],
)
def test_a_collectives_chips_are_those_of_its_group(groups, size):
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n"
        f"  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}_ids=true\n"
        "}\n"
    )
    (found,) = hlo.collectives(text, 8)
    assert found.group == size and found.bytes == 2 * 32 * (size - 1) / size


# Of the compiler's bytes over the formula's. A CPU's compiler gathers a head once an update, not
# once a microbatch, and sums layers' gradients over fsdp whole: the two make up for each other
# here. It sums over tensor whole too, twice the bytes; and its plain attention exchanges as well.
RATIOS = {
    (2, 1, 1): (0.99, 1.01), (4, 1, 1): (0.99, 1.01), (8, 1, 1): (0.99, 1.01),
    (1, 2, 1): (0.95, 1.1), (1, 4, 1): (0.95, 1.1), (1, 8, 1): (0.95, 1.1), (2, 2, 1): (0.95, 1.1),
    (1, 1, 2): (1.0, 2.6), (1, 1, 4): (1.0, 2.6), (1, 1, 8): (1.0, 2.6),
    (1, 2, 2): (1.0, 1.9), (2, 1, 2): (1.0, 1.9), (2, 2, 2): (1.0, 1.9),
}  # fmt: skip


QUICKLY = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


@pytest.mark.heavy
def test_replicas_exchange_what_the_formula_says():
    other_process.run("import test_meshes; test_meshes.traffic([(2, 1, 1)])", XLA_FLAGS=QUICKLY)


@pytest.mark.slow
def test_what_moves_on_every_mesh_is_near_the_formula():
    code = "import test_meshes; test_meshes.traffic(test_meshes.RATIOS)"
    print(other_process.run(code, XLA_FLAGS=QUICKLY))


def traffic(shapes):
    """Runs in the subprocess: a row of bytes for each mesh, of a small model's update."""
    import jax
    import planned

    from sdjax.parallel import mesh as meshes
    from sdjax.plan import programs
    from sdjax.plan import traffic as formula

    cfg = planned.training(optim={"microbatch": 8})
    print(f"| data x fsdp x tensor | {' | '.join(hlo.KINDS)} | MB in all | formula | ratio |")
    for shape in shapes:
        w = planned.step_of(cfg, planned.model(num_kv_heads=8), shape)
        devices = jax.devices()[: w.mesh.chips]
        compiled = programs.train_step(w, meshes.over(devices, w.mesh.shape)).traffic
        total, said = sum(compiled.values()), sum(formula.update(w).values())
        least, most = RATIOS[shape]
        sizes = [*(compiled.get(kind, 0.0) for kind in hlo.KINDS), total, said]
        row = " | ".join(f"{size / 1e6:,.0f}" for size in sizes)
        print(f"| {' x '.join(map(str, shape))} | {row} | {total / said:.2f} |", flush=True)
        assert least <= total / said <= most, (shape, compiled, said)
