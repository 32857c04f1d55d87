#!/usr/bin/env bash
# Runs a whole training: creates a slice, installs sdjax, and trains. After a preemption it creates
# the next slice. At the end, also after an error, it copies the results and deletes the slice.
#   tpu/run.sh [--dry-run] [--settings FILE]
# Exit code: that of the training; 1 if TRIES slices were not enough; 130 if interrupted.
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT BUCKET RUNTIME

git -C "$ROOT" cat-file -e "HEAD:$CONFIG" 2>/dev/null || {
  say "CONFIG is $CONFIG: not in the last commit, which setup.sh copies to the slice; commit it"
  exit 2
}
check_name_is_free

# shellcheck disable=SC2317 # because a trap calls it
end() {
  code=$?
  trap - EXIT INT TERM
  if ! "$HERE/delete.sh"; then
    say "THE SLICE IS STILL BEING PAID FOR: gcloud compute tpus tpu-vm delete $NAME ${WHERE[*]}"
    [[ $code -ne 0 ]] || code=1
  fi
  "$HERE/fetch.sh" || say "results were not copied; run tpu/fetch.sh to copy them"
  exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

# Waits for the end of the training. Sets `how` to its exit code, or to "lost" if the slice ended
# first. Code 75 is a run that a signal stopped and that can be resumed.
watch() {
  local silent=0 codes at
  how=0
  while [[ -z $DRY_RUN ]]; do
    # In the background, because bash handles a signal only after a command in the foreground.
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
    # One failed worker is enough, because the others then wait for it or fail too.
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
      75 | lost) say "preempted ($how); resuming from the newest checkpoint" ;;
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
say "no slice of $TRIES lasted until the training ended"
exit 1
