#!/usr/bin/env bash
# Follows the log of worker 0; WORKER=3 tpu/logs.sh follows that of worker 3.
#   tpu/logs.sh [--dry-run] [--settings FILE]
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT

WORKER=${WORKER:-0} on_workers "tail -n 50 -F sdjax.log"
