"""A profiler trace yields kernels, categories, busy time and exposed collectives."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from sdjax.analysis import trace
from sdjax.logs import profiler


def named(pid, process, threads):
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}}
    for tid, name in threads.items():
        yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def ran(pid, tid, name, start, length):
    """Returns an event; start and length are in microseconds."""
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start, "dur": length}


GPU = [
    *named(1, "/device:GPU:0", {14: "Stream #14(Compute)", 15: "Stream #15(Copy)", 9: "XLA Ops"}),
    *named(7, "/host:CPU", {1: "python"}),
    ran(1, 14, "nvjet_tst_128x256", 0, 600),
    ran(1, 14, "nvjet_tst_128x256", 1000, 400),
    ran(1, 14, "loop_multiply_fusion", 600, 100),
    ran(1, 15, "MemcpyD2D", 650, 150),
    ran(1, 9, "dot.3", 0, 600),
    ran(7, 1, "PjitFunction(f)", 0, 5000),
]


def test_kernels_of_a_gpu_are_summed_by_name_and_kind():
    read = trace.of_events(GPU)
    assert [(k.name, k.launches) for k in read.kernels] == [
        ("nvjet_tst_128x256", 2), ("MemcpyD2D", 1), ("loop_multiply_fusion", 1),
    ]  # fmt: skip
    assert read.by_category() == pytest.approx(
        {"matmul": 1000e-6, "copies": 150e-6, "elementwise": 100e-6}
    )
    # Kernels and the copy overlap for 50 us; nothing ran between 800 and 1000.
    assert (read.devices, read.span, read.busy) == pytest.approx((1, 1400e-6, 1200e-6))


def test_a_collective_that_hides_behind_a_product_is_not_waited_for():
    events = [
        *named(1, "/device:GPU:0", {14: "Stream #14(Compute)", 20: "Stream #20(Async)"}),
        *named(2, "/device:GPU:1", {14: "Stream #14(Compute)", 20: "Stream #20(Async)"}),
        ran(1, 14, "nvjet_tst_128x256", 0, 600),
        ran(1, 20, "ncclDevKernel_AllGather_RING_LL", 500, 300),
        ran(2, 14, "nvjet_tst_128x256", 0, 600),
        ran(2, 20, "ncclDevKernel_AllGather_RING_LL", 300, 200),
    ]
    read = trace.of_events(events)
    # The first device waits for 200 us of 300, the second for none of 200.
    assert (read.busy, read.exposed) == pytest.approx((700e-6, 100e-6))
    head = "collectives 0.2 ms per device, 0.1 of them while nothing else ran"
    assert head in trace.to_markdown(read)


def test_operations_of_a_tpu_are_those_of_its_ops_line():
    events = [
        *named(3, "/device:TPU:0", {2: "XLA Ops", 1: "XLA Modules", 3: "Steps"}),
        ran(3, 1, "jit_step(123)", 0, 100),
        ran(3, 2, "fusion.12", 0, 60),
        ran(3, 2, "all-gather.4", 60, 40),
    ]
    assert trace.of_events(events).by_category() == pytest.approx(
        {"elementwise": 60e-6, "collectives": 40e-6}
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matmul"),
        ("gemm_fusion_dot_12", "matmul"),
        ("ncclDevKernel_AllGather_RING_LL", "collectives"),
        ("input_reduce_fusion_3", "reductions"),
        ("MemcpyH2D", "copies"),
        ("wrapped_concatenate", "copies"),
        ("cub_DeviceRadixSortKernel", "sort"),
        ("loop_add_fusion", "elementwise"),
        ("something_new", "other"),
    ],
)
def test_a_kernel_s_kind_is_in_its_name(name, kind):
    assert trace.category(name) == kind


def test_the_newest_trace_of_a_directory_is_read(tmp_path):
    folder = tmp_path / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": GPU}, file)
    table = trace.to_markdown(trace.read(tmp_path))
    assert "| matmul | 1.00 | 80.0% |" in table and "busy 85.7%" in table
    assert "| nvjet_tst_128x256 | matmul | 2 | 1.00 | 80.0% |" in table
    with pytest.raises(FileNotFoundError, match=r"no \.trace\.json\.gz"):
        trace.read(tmp_path / "elsewhere")


def test_a_trace_of_a_cpu_says_that_it_has_no_device(tmp_path, capsys):
    f = jax.jit(lambda x: x @ x)
    with profiler.trace(tmp_path):
        f(jnp.ones((8, 8))).block_until_ready()
    assert trace.read(tmp_path).kernels == ()
    assert "no device events" in capsys.readouterr().out


def test_the_second_and_third_round_are_traced(tmp_path, capfd):
    with profiler.rounds(str(tmp_path)) as before:
        for number in range(5):
            before(number)
            jnp.arange(3 + number).block_until_ready()
            traces = len(list(tmp_path.glob("**/*.trace.json.gz")))
            assert traces == (1 if number >= 3 else 0)


def test_a_loop_of_one_round_says_that_it_left_no_trace(tmp_path, capsys):
    with profiler.rounds(str(tmp_path / "p")) as before:
        before(0)
    assert "no trace in" in capsys.readouterr().out
    with profiler.rounds(None) as before:
        before(1)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
