#!/usr/bin/env bash
# mlflow 3.17.2: one metric called avg@8 makes log_metrics lose all metrics of the step.
#
# avg@8, pass@8 and maj@8 are the usual names of scores over several answers.
# One would expect such a name to be kept, or to be the only one that is left out.
# What happens: "@" is not among the characters of a name, and log_metrics checks all names before
# it writes any. So the loss of the same call is lost with it. A training that catches the exception
# to protect itself, as loggers do, has an empty run at its end. "%", "+" and "=" do the same.
# Instead: replace such characters before the call; a space, ":" and "/" are allowed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2

MLFLOW_ALLOW_FILE_STORE=true MLFLOW_TRACKING_URI="file://$folder/runs" venv/bin/python -I - <<'EOF'
import mlflow
from mlflow.exceptions import MlflowException

refused = []
with mlflow.start_run() as run:
    for i, name in enumerate(("avg@8", "avg%8", "avg+8", "avg=8", "avg 8", "avg:8", "avg/8")):
        try:
            mlflow.log_metrics({f"loss {i}": 1.0, name: 0.5})
        except MlflowException:
            refused.append(name)
kept = mlflow.get_run(run.info.run_id).data.metrics
print("mlflow", mlflow.__version__)
print("refused:", refused)
print("kept:", kept)

assert refused == ["avg@8", "avg%8", "avg+8", "avg=8"], "other names are refused"
assert set(kept) == {"loss 4", "loss 5", "loss 6", "avg 8", "avg:8", "avg/8"}, "other metrics are kept"
EOF
