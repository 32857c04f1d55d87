#!/usr/bin/env bash
# Deletes the slice and its queued resource, and checks that they are gone.
#   tpu/delete.sh [--dry-run] [--settings FILE]
# The files of the run stay in the bucket.
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT

for _ in 1 2 3; do
  if queued; then
    run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet || true
  else
    run gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" --quiet || true
  fi
  [[ -n $DRY_RUN || $(state) == NONE ]] && exit 0
  sleep "$POLL_S"
done
say "$NAME still exists: $(state)"
exit 1
