#!/usr/bin/env bash
# A whole training: creates a slice, sets it up, trains, takes the next slice after a preemption,
# copies the results and deletes the slice, however it ends.
#   tpu/run.sh [--dry-run] [--settings FILE]
# Exit code: that of the training; 1 where TRIES slices were not enough; 130 interrupted.
source "$(dirname "$0")/common.sh" "$@"

check_name_is_free

# shellcheck disable=SC2317 # a trap calls it
end() {
  code=$?
  trap - EXIT INT TERM
  if ! "$HERE/delete.sh"; then
    say "IT IS STILL BEING PAID FOR: gcloud compute tpus tpu-vm delete $NAME ${WHERE[*]}"
    [[ $code -ne 0 ]] || code=1
  fi
  "$HERE/fetch.sh" || say "results were not copied; tpu/fetch.sh tries again"
  exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

# Waits, and sets `how` to how the training ended: its exit code, or "lost" where the slice went
# first. 75 is a run that was told to stop and can go on.
watch() {
  local silent=0 codes at
  how=0
  while [[ -z $DRY_RUN ]]; do
    # Waited for, so that a signal is heard at once.
    sleep "$POLL_S" &
    wait $!
    at=$(state)
    how=lost
    if [[ $at != READY && $at != UNKNOWN ]]; then return; fi
    if [[ $at == UNKNOWN ]] || ! codes=$(LIMIT_S=$ANSWER_S on_workers 'cat sdjax.exit 2>/dev/null || echo running' 2>/dev/null); then
      silent=$((silent + 1))
      if [[ $silent -ge $UNREACHABLE ]]; then return; fi
      continue
    fi
    silent=0
    # A worker that fails leaves the others waiting for it, or failing in turn.
    if grep -qx 75 <<<"$codes"; then how=75; return; fi
    how=$(grep -xE '[1-9][0-9]*' <<<"$codes" | head -n 1) || true
    if [[ -n $how ]]; then return; fi
    how=0
    if ! grep -qx running <<<"$codes"; then return; fi
  done
}

for ((slice = 1; slice <= TRIES; slice++)); do
  say "slice $slice of at most $TRIES"
  if "$HERE/create.sh" && "$HERE/setup.sh" && "$HERE/launch.sh"; then
    watch
    case $how in
      0) say "done"; exit 0 ;;
      75 | lost) say "preempted ($how); going on from the newest checkpoint" ;;
      *)
        say "the training failed with exit code $how; the end of its log:"
        WORKER=0 on_workers "tail -n 30 sdjax.log" || true
        exit "$how"
        ;;
    esac
  fi
  "$HERE/delete.sh"
  if [[ $slice -lt $TRIES && -z $DRY_RUN ]]; then sleep "$POLL_S"; fi
done
say "no slice of $TRIES lasted"
exit 1
