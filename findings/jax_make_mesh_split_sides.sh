#!/usr/bin/env bash
# jax 0.10.2: jax.make_mesh cannot give a TPU pod's mesh an axis that is a part of a side.
#
# A v5p slice of 4x4x4 has 64 chips, so one would expect make_mesh((32, 2), ...) to work: two chips
# side by side hold the parts of each layer, and 32 such pairs hold parts of the batch.
# What happens: make_mesh refuses, because 2 is no product of whole sides of the slice. The error
# advises to set allow_split_physical_axes, which is no argument of make_mesh.
# Lists of CPU or GPU devices have no sides, so a trial on them does not show it.
# Instead: jax.sharding.Mesh over the array that mesh_utils.create_device_mesh returns with
# allow_split_physical_axes=True.
# The script describes the slice to the compiler (libtpu on x86 Linux) and needs no TPU.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "jax[tpu]==0.10.2" libtpu==0.0.42.1

# Without this setting, libtpu asks the cloud's metadata server on which machine it runs.
TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu venv/bin/python -I - 2>stderr.txt <<'EOF' || {
import inspect

import jax
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

print("jax", jax.__version__)
devices = topologies.get_topology_desc("v5p:4x4x4", platform="tpu").devices
print(f"devices of v5p:4x4x4: {len(devices)}")
assert len(devices) == 64

names = ("batch", "tensor")
whole = jax.make_mesh((16, 4), names, devices=devices)
print(f"make_mesh (16, 4): {dict(whole.shape)}")
assert dict(whole.shape) == {"batch": 16, "tensor": 4}

try:
    jax.make_mesh((32, 2), names, devices=devices)
    refusal = ""
except NotImplementedError as error:
    refusal = str(error)
print(f"make_mesh (32, 2): NotImplementedError: {refusal}")
assert "set allow_split_physical_axes" in " ".join(refusal.split()), "make_mesh changed"

arguments = list(inspect.signature(jax.make_mesh).parameters)
print(f"arguments of make_mesh: {arguments}")
assert "allow_split_physical_axes" not in arguments

array = mesh_utils.create_device_mesh((32, 2), devices, allow_split_physical_axes=True)
split = Mesh(array, names)
print(f"create_device_mesh (32, 2): {dict(split.shape)}")
assert dict(split.shape) == {"batch": 32, "tensor": 2}
for pair in array:
    first, second = (device.coords for device in pair)
    assert sum(abs(a - b) for a, b in zip(first, second)) == 1
print("the two chips of each pair are neighbours")
EOF
  cat stderr.txt
  exit 1
}
