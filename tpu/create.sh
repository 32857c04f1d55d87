#!/usr/bin/env bash
# Creates a slice in the way of MODE in settings.sh, and waits until it is ready.
#   tpu/create.sh [--dry-run] [--settings FILE]
# Exit code 1: there is no slice, and no part of one is left.
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT RUNTIME

case $MODE in
  on-demand | spot | queued | queued-spot) ;;
  *) say "MODE is $MODE: must be on-demand, spot, queued or queued-spot"; exit 2 ;;
esac
check_name_is_free

# shellcheck disable=SC2317 # because a trap calls it
left() {
  code=$?
  trap - EXIT
  if [[ $code -ne 0 ]]; then
    say "no slice (exit code $code); deleting any part of it"
    "$HERE/delete.sh" || say "could not delete it; check with: gcloud compute tpus tpu-vm list"
    exit 1
  fi
}
trap left EXIT
trap 'exit 130' INT TERM

spot=()
[[ $MODE == *spot ]] && spot=(--spot)
case $MODE in
  on-demand | spot)
    run gcloud compute tpus tpu-vm create "$NAME" "${WHERE[@]}" \
      --accelerator-type "$TYPE" --version "$RUNTIME" "${spot[@]}"
    ;;
  queued | queued-spot)
    run gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" "${WHERE[@]}" \
      --accelerator-type "$TYPE" --runtime-version "$RUNTIME" "${spot[@]}" \
      --valid-until-duration "${QUEUE_S}s"
    if [[ -z $DRY_RUN ]]; then
      end=$((SECONDS + QUEUE_S))
      while :; do
        at=$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
          --format 'value(state.state)')
        [[ $at == ACTIVE ]] && break
        if [[ $at == FAILED || $at == SUSPENDED || $SECONDS -ge $end ]]; then
          say "the queued resource is $at"
          exit 1
        fi
        sleep "$POLL_S"
      done
    fi
    ;;
esac
at=$(state)
[[ $at == READY ]] || { say "the slice is $at"; exit 1; }
say "$NAME is ready"
