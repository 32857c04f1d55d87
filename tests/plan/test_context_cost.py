"""What a context costs per step, beside the parts of the plan that it is made of."""

import pytest
from planned import model, training

from sdjax import config
from sdjax.errors import UserError
from sdjax.models import flops
from sdjax.plan import context_cost, memory, seconds, slices, workload

ONE = workload.MeshSizes(data=1, fsdp=1, tensor=1, rollout_tensor=0)


@pytest.mark.parametrize(
    ("kind", "devices", "name"),
    [
        ("NVIDIA H200", 2, "h200:2"),
        ("TPU v5p", 8, "v5p:2x2x2"),
        ("TPU7x", 2, "tpu7x:1x1x1"),
        ("NVIDIA H200", 3, None),
        ("cpu", 1, None),
    ],
)
def test_the_devices_of_this_machine_are_a_slice_of_the_plan(kind, devices, name):
    found = context_cost.slice_of(kind, devices)
    assert (found and found.name) == name


def test_the_cost_of_a_context_is_that_of_the_plan():
    cfg, shape, piece = training(rollout={"slots": 8}), model(), slices.parse("h200:1")
    lengths = [30, 34], [130, 150], [90, 110]
    cost = context_cost.of_context(cfg, shape, ONE, piece, *lengths)
    alone, taught = (flops.update(shape, *lengths, teachers=n) for n in (0, 1))
    assert cost.update_share == pytest.approx(taught / alone) and 1.2 < cost.update_share < 2
    # 32 completions per step; two were measured.
    assert cost.update_flops == pytest.approx(16 * taught)
    w = workload.make(cfg, shape, ONE, slots=8, mean_prompt=32, mean_completion=100)
    assert cost.update_bytes == memory.update(w).total
    assert cost.step_s == pytest.approx(sum(seconds.by_phase(w, piece).values()))
    unknown = context_cost.of_context(cfg, shape, ONE, None, *lengths)
    assert unknown.step_s is None and unknown.update_flops == cost.update_flops


def test_two_contexts_cost_more_than_one_and_a_mesh_must_divide_the_batch():
    lengths = [30], [130], [90]
    mixed = config.Target(rule="weights", weights={"solution": 0.5, "plain": 0.5})
    one, two = (
        context_cost.of_context(cfg, model(), ONE, None, *lengths)
        for cfg in (training(), training(target=vars(mixed)))
    )
    assert two.update_flops > one.update_flops and two.update_bytes > one.update_bytes
    mesh = workload.MeshSizes(data=3, fsdp=1, tensor=1, rollout_tensor=0)
    with pytest.raises(UserError, match=r"optim.microbatch is 4: must be a multiple of 3"):
        context_cost.of_context(training(), model(), mesh, None, *lengths)
