"""Measures speed; prints tables and writes bench.json."""

from __future__ import annotations

import json
import shlex
import sys

import jax

from sdjax import config
from sdjax.bench import bench_rows, head, peaks, steps, subject, tail
from sdjax.io import run_dir
from sdjax.io.files import write_text
from sdjax.io.redact import redact
from sdjax.models.network.model_config import ModelConfig
from sdjax.objectives import divergences, token_weights
from sdjax.parallel import hosts
from sdjax.parallel import mesh as meshes
from sdjax.training import loaded_model


def run(cfg: config.Bench) -> None:
    """Measures the config's phases for each number of prompts, and writes bench.json."""
    run_dir.check_places(cfg)
    mesh = meshes.make(cfg.mesh)
    model = subject.model_config(cfg)
    _check(cfg, model, mesh)
    folder = run_dir.claim_folder(cfg.out, cfg, resume=False)
    phases = {"head": head.measure, "tail": tail.measure}
    measures = [phases[p] for p in cfg.phases if p in phases]
    if {"rollout", "update"} & set(cfg.phases):
        measures.insert(0, steps.measure)
    best = peaks.measure(model.compute_dtype) if cfg.measure else peaks.known(_kind())
    hosts.note(
        f"{len(jax.devices())} x {_kind()}, jax {jax.__version__}; a device's peak: "
        f"{best.flops_per_s / 1e12:.4g} TFLOP/s, {best.bytes_per_s / 1e12:.3g} TB/s "
        f"({best.source})"
    )
    number, rows = jax.device_count(), []
    with jax.set_mesh(mesh), run_dir.pushed(folder):
        measured = subject.make(cfg, model, mesh)
        for measure in measures:
            for prompts in cfg.prompts:
                new = [
                    row.to_dict(best.flops_per_s * number, best.bytes_per_s * number)
                    for row in measure(measured, prompts)
                ]
                hosts.note(bench_rows.to_markdown(new))
                rows += new
                # Written after each measure, because a later one may not fit the device.
                if jax.process_index() == 0:
                    text = json.dumps(_about(cfg, best) | {"rows": rows}, indent=2)
                    write_text(folder.local / "bench.json", text + "\n")


def _kind() -> str:
    """Returns the name of the devices."""
    return jax.devices()[0].device_kind


def _about(cfg: config.Bench, best: peaks.Peaks) -> dict:
    """Returns the facts that a reader of the figures needs: command, devices, versions, config."""
    return {
        "command": redact(shlex.join(["python", "-m", "sdjax.main", *sys.argv[1:]])),
        "device": _kind(),
        "devices": jax.device_count(),
        "jax": jax.__version__,
        # With a cache, compile_s may be the time of a look-up.
        "compilation_cache": jax.config.jax_compilation_cache_dir,  # type: ignore[attr-defined]
        "peak_flops_per_s": best.flops_per_s,
        "peak_bytes_per_s": best.bytes_per_s,
        "peak_source": best.source,
        "config": config.to_public(cfg),
    }


def _check(cfg: config.Bench, model: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if the config does not fit model or mesh."""
    divergences.get(cfg.loss.divergence)
    token_weights.get(cfg.loss.token_weights)
    loaded_model.check_divisible(model, mesh)
    completion = cfg.completion_tokens
    loaded_model.check_context(model, "prompt_tokens", cfg.prompt_tokens, completion)
    if "update" in cfg.phases:
        loaded_model.check_context(model, "reprompt_tokens", cfg.reprompt_tokens, completion)
        loaded_model.check_shards("optim.microbatch", cfg.optim.microbatch, mesh)
    for prompts in cfg.prompts:
        loaded_model.check_shards("prompts", prompts, mesh)
