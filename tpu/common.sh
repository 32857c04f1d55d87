# shellcheck shell=bash
# Every script of this folder sources this file: settings, --dry-run, and calls of gcloud.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034
ROOT=$(dirname "$HERE")
DRY_RUN=${DRY_RUN:-}
SETTINGS=${SETTINGS:-$HERE/settings.sh}
while [[ $# -gt 0 ]]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --settings) SETTINGS=${2:-}; shift ;;
    -h | --help) grep '^#' "$0" | sed -n '2,$ s/^# \{0,1\}//p'; exit 0 ;;
    *) echo "$0: unknown argument $1; known are --dry-run, --settings FILE, --help" >&2; exit 2 ;;
  esac
  shift || true
done
export DRY_RUN SETTINGS
[[ -f $SETTINGS ]] || { echo "tpu: --settings is '$SETTINGS': no such file" >&2; exit 2; }
# shellcheck source=tpu/settings.sh
source "$SETTINGS"
WHERE=(--project "$PROJECT" --zone "$ZONE")

say() { echo "tpu: $*" >&2; }

# Ends with exit code 2 if a setting is empty or still a placeholder; --dry-run only warns, once.
check_settings() {
  local name
  for name in "$@"; do
    case ${!name} in
      "" | my-project | my-bucket | my-cluster | my-image)
        [[ -n ${WARNED:-} ]] || say "$name is '${!name}': set it in $SETTINGS or in the environment"
        [[ -n $DRY_RUN ]] || exit 2
        ;;
    esac
  done
  export WARNED=1
  [[ -n $DRY_RUN ]] || command -v "${TOOL:-gcloud}" >/dev/null || {
    say "${TOOL:-gcloud} is not installed, or not on PATH"
    exit 2
  }
}

# Runs a command; with --dry-run only prints it.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '+'; printf ' %q' "$@"; printf '\n'
  else
    "$@"
  fi
}

# Runs a command on all workers, or on the workers named by WORKER. LIMIT_S limits its seconds.
on_workers() {
  local limit=()
  [[ -z ${LIMIT_S:-} ]] || limit=(timeout "$LIMIT_S")
  run "${limit[@]}" gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker "${WORKER:-all}" --command "$1"
}

queued() { [[ $MODE == queued* ]]; }

# Prints the state of the slice (READY, PREEMPTED, ...). NONE: it does not exist. UNKNOWN: gcloud
# did not answer, so it may exist.
state() {
  local said
  if [[ -n $DRY_RUN ]]; then
    echo READY
  elif said=$(gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" --format 'value(state)' 2>&1); then
    tail -n 1 <<<"$said"
  elif grep -qiE 'not[_ ]found' <<<"$said"; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

# Ends with exit code 2 if the name is in use, because the scripts must not touch another slice.
check_name_is_free() {
  local at
  [[ -z $DRY_RUN ]] || return 0
  at=$(state)
  [[ $at == NONE ]] || { say "NAME is $NAME: it is in use ($at); choose another"; exit 2; }
}
