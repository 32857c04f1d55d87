#!/bin/bash
# Reproduces the miniature from the beginning: traces, base model, study, trainings.
#   bash configs/tiny/run.sh [RUNS [PART ...]]
# RUNS: directory of all runs (default runs/tiny).
# PART: traces repeat base study sdpo grpo sdpo_answer sdpo_regenerated sdpo_ema sdpo_epistemic
# sdpo_entropy report (default: all, in this order).
# SEEDS: one training per seed (default "0 1 2").
# MODEL: model that is studied and trained (default RUNS/base/model).
# BASE_FLAGS: XLA flags of the base model's training.
# SMALL=1: shows in minutes on a CPU that the script runs; the figures mean nothing.
set -e
runs=${1:-runs/tiny}
shift || true
parts=${*:-traces repeat base study sdpo grpo sdpo_answer sdpo_regenerated sdpo_ema sdpo_epistemic
  sdpo_entropy report}
model=${MODEL:-$runs/base/model}
# With these flags the same device produces the same bits.
flags=${BASE_FLAGS---xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0}
from=(--source "$runs/traces/traces.jsonl" --model.path "$runs/traces/model")
eval_small="--eval.examples 2 --eval.k 1 --eval.max_completion_tokens 64"

job() { # CONFIG ARGUMENTS
  echo "== $(date +%T) $*"
  python -m sdjax.main --config "configs/tiny/$1.py" "${@:2}"
}

for part in $parts; do
  case $part in
    traces)
      job traces --out "$runs/traces" ${SMALL:+--rows 400} ;;
    repeat)
      head -n 20000 "$runs/traces/traces.jsonl" > "$runs/traces/first.jsonl"
      for time in 1 2; do
        XLA_FLAGS="$flags $XLA_FLAGS" job repeat --out "$runs/repeat_$time" "${from[@]}" \
          --source "$runs/traces/first.jsonl" \
          ${SMALL:+--steps 2 --batch 16 --optim.microbatch 4}
      done
      sha256sum "$runs"/repeat_[12]/model/model.safetensors ;;
    base)
      XLA_FLAGS="$flags $XLA_FLAGS" job base --out "$runs/base" "${from[@]}" \
        ${SMALL:+--steps 4 --batch 16 --log_every 2 --optim.microbatch 4 $eval_small} ;;
    study)
      if [ -n "$SMALL" ] && [ -z "$MODEL" ]; then continue; fi # a model of a few updates solves nothing
      job study --out "$runs/study" --model.path "$model" \
        ${SMALL:+--problems 1 --tried 64 --eval.k 4 --eval.batch 16} ;;
    report)
      job report --runs "$runs"/*_s[0-9]* --out "$runs/report.html" ;;
    *)
      for seed in ${SEEDS:-0 1 2}; do
        job "$part" --out "$runs/${part}_s$seed" --model.path "$model" \
          --seed "$seed" --data.seed "$seed" \
          ${SMALL:+--steps 2 --rollout.prompts_per_step 2 --rollout.group_size 4} \
          ${SMALL:+--rollout.max_completion_tokens 64 --optim.microbatch 8 $eval_small}
      done ;;
  esac
done
