#!/usr/bin/env bash
# reasoning-gym 0.1.25: reasoning_gym.__version__ names another version than the installed one.
#
# One would expect reasoning_gym.__version__ to be the version of the package.
# What happens: it is 0.1.19. A record of a run that notes it names the wrong tasks and graders,
# because both change between versions.
# Instead: use importlib.metadata.version("reasoning-gym").
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25

venv/bin/python -I - <<'EOF'
from importlib.metadata import version

import reasoning_gym

installed = version("reasoning-gym")
print(f"installed: {installed}")
print(f"__version__: {reasoning_gym.__version__}")

assert installed == "0.1.25"
assert reasoning_gym.__version__ == "0.1.19", "__version__ changed"
EOF
