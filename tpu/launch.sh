#!/usr/bin/env bash
# Starts the training on all workers, or resumes it from its newest checkpoint, and returns.
#   tpu/launch.sh [--dry-run] [--settings FILE]
# Each worker writes its log to sdjax.log and, at the end, its exit code to sdjax.exit.
source "$(dirname "$0")/common.sh" "$@"
check_settings PROJECT

train="python -m sdjax.main --config $CONFIG --out ~/bucket/$RUN --resume $ARGS"
on_workers "rm -f sdjax.exit
cat > sdjax.sh <<'END'
cd ~/sdjax && . .venv/bin/activate
$train
echo \$? > ~/sdjax.exit
END
nohup bash sdjax.sh >> sdjax.log 2>&1 < /dev/null &"
