"""What tests of meshes share: their shapes, and how arrays lie on them."""

import itertools
import os

import pytest

AXES = ("data", "fsdp", "expert", "tensor")
# All shapes of 8 devices.
ALL = tuple(
  sizes
  for sizes in itertools.product((1, 2, 4, 8), repeat=4)
  if sizes[0] * sizes[1] * sizes[2] * sizes[3] == 8
)
ON_REQUEST = pytest.mark.skipif(
  "PIVOTRL_MESHES" not in os.environ, reason="set PIVOTRL_MESHES=1"
)


def shapes(chosen):
  """Parameters `sizes` of `parallel.mesh`: every shape of 8 devices, of which
  the `chosen` run without $PIVOTRL_MESHES.
  """
  return [
    pytest.param(
      dict(zip(AXES, sizes, strict=True)),
      id="x".join(map(str, sizes)),
      marks=() if sizes in chosen else ON_REQUEST,
    )
    for sizes in ALL
  ]


def copies(array):
  """How often the devices hold an array, all of them together."""
  held = sum(shard.data.size for shard in array.addressable_shards)
  return held / array.size
