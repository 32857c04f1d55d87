#!/bin/bash
# Compares one GPU with meshes of two, on a machine with two: time, losses and trace of a 1.7B SDPO
# step.
#   bash configs/bench/meshes.sh [RUNS [PART ...]]
# RUNS: new directory of all runs (default runs/bench/meshes).
# PART: one data fsdp tensor losses trace table (default: all, in this order). The script reports a
# run that fails or takes too long, and continues with the next.
#   one     a whole step of 64 prompts on one GPU, and at the same time one of 32 on the other GPU
#   losses  20 updates of fixed tokens on one GPU and on each mesh of two. STAGGER=20 starts each run
#           20 s after the previous one without waiting, which needs memory for all four
#   trace   a whole step of 8 prompts with fsdp 2
# LIMIT: seconds per run (default 170). PYTHON: the interpreter (default python).
# SMALL=1: shows with tiny shapes on two CPU devices that the script runs; the figures mean nothing.
runs=${1:-runs/bench/meshes}
shift || true
parts=${*:-one data fsdp tensor losses trace table}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}
many=64 half=32 few=8 rows=16 small=()
if [ -n "$SMALL" ]; then
  export JAX_PLATFORMS=cpu
  many=4 half=2 few=2 rows=2
  small=(--shape.vocab_size 256 --shape.hidden_size 64 --shape.intermediate_size 128
    --shape.num_hidden_layers 2 --shape.num_attention_heads 4 --shape.num_key_value_heads 2
    --shape.head_dim 16 --model.compute_dtype float32 --group_size 4
    --prompt_tokens 8 --completion_tokens 16 --reprompt_tokens 24)
fi
on_one=(--optim.microbatch "$rows") # every mesh has the same number of rows per GPU
on_data=(--optim.microbatch $((2 * rows)) --mesh.data 2 --mesh.fsdp 1)
on_fsdp=(--optim.microbatch $((2 * rows)) --mesh.fsdp 2)
on_tensor=(--optim.microbatch "$rows" --mesh.fsdp 1 --mesh.tensor 2)
step=(--repeats 1)
losses=(--phases update --prompts "$few" --repeats 19)

bench() { # NAME GPUS ARGUMENTS: a run in RUNS/NAME; its output comes when it has ended
  local name=$1 gpus=$2 start=$SECONDS commas=${2//[^,]/} devices=("CUDA_VISIBLE_DEVICES=$2") code
  if [ -n "$SMALL" ]; then
    devices=("XLA_FLAGS=--xla_force_host_platform_device_count=$((${#commas} + 1))")
  fi
  env "${devices[@]}" timeout "${LIMIT:-170}" "${PYTHON:-python}" -m sdjax.main \
    --config configs/bench/step_1_7b.py --out "$runs/$name" --loss.chunk_tokens 1024 --no_measure \
    "${@:3}" "${small[@]}" > "$runs/$name.log" 2>&1
  code=$?
  echo "== $(date +%T) $name on $gpus: rc $code, $((SECONDS - start)) s"
  tail -n 60 "$runs/$name.log"
}

mkdir -p "$runs"
for part in $parts; do
  begun=$SECONDS
  case $part in
    one)
      bench one 0 "${on_one[@]}" "${step[@]}" --prompts "$many" &
      bench half 1 "${on_one[@]}" "${step[@]}" --prompts "$half" &
      wait ;;
    data) bench data 0,1 "${on_data[@]}" "${step[@]}" --prompts "$many" ;;
    fsdp) bench fsdp 0,1 "${on_fsdp[@]}" "${step[@]}" --prompts "$many" ;;
    tensor) bench tensor 0,1 "${on_tensor[@]}" "${step[@]}" --prompts "$many" ;;
    losses)
      for mesh in one data fsdp tensor; do
        declare -n flags=on_$mesh
        gpus=$([ $mesh = one ] && echo 0 || echo 0,1)
        if [ -n "$STAGGER" ]; then # memory as it is needed: four could not have .95 each
          XLA_PYTHON_CLIENT_PREALLOCATE=false bench "losses_$mesh" "$gpus" "${flags[@]}" "${losses[@]}" &
          sleep "$STAGGER"
        else
          bench "losses_$mesh" "$gpus" "${flags[@]}" "${losses[@]}"
        fi
      done
      wait ;;
    trace)
      bench trace_fsdp 0,1 "${on_fsdp[@]}" "${step[@]}" --prompts "$few" \
        --profile "$runs/profile/fsdp" ;;
    table) "${PYTHON:-python}" -m sdjax.bench.mesh_compare "$runs" || echo "== table: rc $?" ;;
    *) echo "$part: no such part" ;;
  esac
  echo "== $part: $((SECONDS - begun)) s"
done
