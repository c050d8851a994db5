"""Axes of a mesh of devices, and how activations lie over them.

Whoever runs a step on a mesh sets it (`jax.set_mesh`); without one nothing
here has an effect. What parameters lie over is said in `train/parallel.py`.
Left to itself XLA follows the parameters: all lines on every device, their
features divided and put together again at each product.
"""

import math

import jax
from jax.sharding import PartitionSpec

DATA, FSDP, EXPERT, TENSOR = "data", "fsdp", "expert", "tensor"
LINES = (DATA, FSDP, EXPERT)  # Lines of a batch lie over these.


def laid(x: jax.Array, *over: tuple[str, ...]) -> jax.Array:
  """`x` with its first dimensions over the axes given, whole otherwise.

  Args:
    x: any array.
    *over: of each dimension the axes, of which those count that the mesh in
      force has.
  """
  if not jax.sharding.get_abstract_mesh().axis_names:
    return x
  spec = PartitionSpec(*map(given, over))
  return jax.lax.with_sharding_constraint(x, spec)


def given(axes: tuple[str, ...]) -> tuple[str, ...]:
  """Those of `axes` that the mesh in force has, and that lie with XLA: not
  those of which a `shard_map` around the caller has made parts.
  """
  mesh = jax.sharding.get_abstract_mesh()
  free = set(mesh.axis_names) - set(mesh.manual_axes)
  return tuple(axis for axis in axes if axis in free)


def lines(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None):
  """Devices of a mesh, or groups of them, that each have lines to itself; by
  default of the mesh in force.
  """
  return size(LINES, mesh)


def size(
  axes: tuple[str, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
) -> int:
  """Devices along those of `axes` that a mesh, by default the one in force,
  has.
  """
  shape = (mesh or jax.sharding.get_abstract_mesh()).shape
  return math.prod(shape.get(axis, 1) for axis in axes)
