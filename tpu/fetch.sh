#!/usr/bin/env bash
# Copies the results of the run, without checkpoints, from the bucket to RESULTS. A further call
# copies only new files. It needs no slice.
#   tpu/fetch.sh [--dry-run] [--settings FILE]
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT BUCKET

run mkdir -p "$ROOT/$RESULTS/$RUN"
run gcloud storage rsync --project "$PROJECT" --recursive --exclude '^checkpoints/' \
  "gs://$BUCKET/$RUN" "$ROOT/$RESULTS/$RUN"
