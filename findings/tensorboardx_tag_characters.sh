#!/usr/bin/env bash
# tensorboardX 2.6.5: add_scalar changes characters of a tag, so two metrics can become one.
#
# One would expect a scalar under the tag that was given, or an error.
# What happens: each "@", space, "%", "+" or "=" becomes "_". The note about it has the level INFO,
# which Python's logging hides by default. So avg@4 is found as avg_4, and a metric that is really
# called avg_4 shares its curve.
# Instead: keep to letters, digits, "_", "-", "." and "/" in names of metrics, or check that your
# names stay different after this change.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tensorboardX==2.6.5 tensorboard==2.20.0

venv/bin/python -I - 2>stderr.txt <<'EOF'
import tensorboardX
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

print("tensorboardX", tensorboardX.__version__)
with tensorboardX.SummaryWriter("events") as writer:
    writer.add_scalar("eval/avg@4", 0.25, 0)
    writer.add_scalar("eval/avg_4", 0.75, 0)

events = EventAccumulator("events")
events.Reload()
tags = events.Tags()["scalars"]
values = [event.value for event in events.Scalars("eval/avg_4")]
print("tags given: ['eval/avg@4', 'eval/avg_4']")
print(f"tags found: {tags}")
print(f"values of eval/avg_4 at step 0: {values}")

assert tags == ["eval/avg_4"], "the tag with @ is no longer changed"
assert values == [0.25, 0.75]
EOF

if grep -q "avg@4" stderr.txt; then
  echo "tensorboardX now tells the user about the changed tag:"
  cat stderr.txt
  exit 1
fi
echo "nothing on standard error names the changed tag"
