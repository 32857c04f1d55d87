# shellcheck shell=bash disable=SC2034
# What every script of this folder reads; a variable of the environment wins over the line here.
: "${PROJECT:=my-project}"
: "${ZONE:=us-east5-a}"
: "${NAME:=sdjax}"
: "${TYPE:=v5p-16}"                # accelerator type; a plan job says which one fits a config
: "${RUNTIME:=v2-alpha-tpuv5}"     # v6e: v2-alpha-tpuv6e; v5e: v2-alpha-tpuv5-lite; v4: tpu-ubuntu2204-base
: "${MODE:=spot}"                  # on-demand, spot, queued, queued-spot
: "${BUCKET:=my-bucket}"           # outlives a preemption; with hierarchical namespace, in ZONE's region
: "${CONFIG:=configs/math/sdpo_qwen3_8b.py}"
: "${ARGS:=}"                      # more arguments of the config, such as "--steps 50"
: "${RUN:=sdpo_qwen3_8b}"          # directory of the run in the bucket
: "${RESULTS:=runs}"               # where results are copied to, on this machine
: "${TRIES:=20}"                   # slices that a run may take, one after the other
: "${POLL_S:=60}"                  # seconds between looks at a run, or at a queue
: "${QUEUE_S:=86400}"              # longest wait in the queue
: "${UNREACHABLE:=5}"              # looks in a row without an answer after which a slice is given up
: "${ANSWER_S:=300}"               # longest wait for the answer to one look
