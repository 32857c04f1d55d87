"""A small training and a model of it, whose bytes and traffic the plan job computes."""

from dataclasses import replace

from sdjax import config
from sdjax.models.network.model_config import LayerKind, ModelConfig
from sdjax.plan import workload


def training(**sections):
    """Returns a small training, with sections replaced field by field."""
    base = config.Train(
        out="unused",
        task=config.TaskConfig(),
        rollout=config.Rollout(
            prompts_per_step=8, group_size=4, max_prompt_tokens=64, max_completion_tokens=192
        ),
        reprompt=config.Reprompt(max_tokens=256),
        teacher=config.Teacher(dtype="float32"),
        loss=config.Loss(chunk_tokens=256),
        optim=config.Optim(microbatch=4),
    )
    changed = {k: replace(getattr(base, k), **v) for k, v in sections.items()}
    return replace(base, **changed)


def model(**changes):
    sizes = {
        "vocab_size": 16_384,
        "num_layers": 4,
        "embed": 512,
        "mlp": 1536,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 64,
    }
    sizes |= changes
    return ModelConfig(
        family="qwen3",
        max_positions=4096,
        layers=(LayerKind(),) * sizes["num_layers"],
        qk_norm="head",
        attention="plain",
        compute_dtype="float32",
        **sizes,
    )


def step_of(cfg, shape, mesh=(1, 1, 1), rollout_tensor=0, slots=8):
    data, fsdp, tensor = mesh
    on = workload.MeshSizes(data=data, fsdp=fsdp, tensor=tensor, rollout_tensor=rollout_tensor)
    return workload.make(cfg, shape, on, slots=slots, mean_prompt=32, mean_completion=96)
