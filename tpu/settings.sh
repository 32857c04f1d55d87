# shellcheck shell=bash disable=SC2034
# Settings of every script of this folder; environment variables take precedence.
: "${PROJECT:=my-project}"         # the scripts refuse my-project and my-bucket
: "${ZONE:=us-east5-a}"
: "${NAME:=sdjax}"
: "${TYPE:=v5p-128}"               # accelerator type; the plan job says which one CONFIG fits:
                                   # v5p-128 is v5p:4x4x4 there, v6e-32 is v6e:4x8
case $TYPE in
  v6e*) runtime=v2-alpha-tpuv6e ;;
  v5lite*) runtime=v2-alpha-tpuv5-lite ;;
  v4*) runtime=tpu-ubuntu2204-base ;;
  v5p*) runtime=v2-alpha-tpuv5 ;;
  *) runtime= ;;
esac
: "${RUNTIME:=$runtime}"           # the image of TYPE; set it for a type that is not above
: "${MODE:=spot}"                  # on-demand, spot, queued, queued-spot
: "${BUCKET:=my-bucket}"           # survives a preemption; needs a hierarchical namespace, in ZONE's region
: "${CONFIG:=configs/math/sdpo_qwen3_8b.py}"
: "${ARGS:=}"                      # further arguments, such as "--steps 50"
: "${RUN:=sdpo_qwen3_8b}"          # directory of the run in the bucket
: "${RESULTS:=runs}"               # local directory that results are copied to
: "${TRIES:=20}"                   # most slices of a run, one after the other
: "${POLL_S:=60}"                  # seconds between checks of a run or a queue
: "${QUEUE_S:=86400}"              # longest wait in the queue, in seconds
: "${UNREACHABLE:=5}"              # checks in a row without an answer, after which a slice counts as lost
: "${ANSWER_S:=300}"               # longest wait for the answer to one check, in seconds
