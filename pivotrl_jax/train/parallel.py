"""`train_step` on devices: one, replicated by pmap, or sharded by jit.

Each wrapper takes the same state and batch and gives the same numbers; they
differ in where the arrays live. pmap is in maintenance mode upstream: its
wrapper is the one to delete.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pivotrl_jax.models import qwen3

AXIS = "data"
# Logical axes of the parameters (models/qwen3.py) to axes of the mesh.
RULES = (
  ("vocab", "model"),
  ("embed", AXIS),
  ("heads", "model"),
  ("kv", "model"),
  ("mlp", "model"),
  ("head_dim", None),
)


def jitted(step: Callable[..., Any]) -> Callable[..., Any]:
  """`step(state, batch)` on the default device; the state is donated."""
  return jax.jit(step, donate_argnums=0)


def pmapped(step: Callable[..., Any]) -> Callable[..., Any]:
  """`step` with the state replicated and trees `B` split over all devices.

  `step` must take `axis_name`. State goes in and comes out unreplicated.
  """
  count = jax.local_device_count()
  run = jax.pmap(functools.partial(step, axis_name=AXIS), axis_name=AXIS)

  def wrapped(state, batch):
    state = jax.tree.map(
      lambda x: np.broadcast_to(x, (count, *np.shape(x))), state
    )
    state, metrics, rows = run(state, jax.tree.map(_split(count), batch))
    state, metrics = jax.tree.map(lambda x: x[0], (state, metrics))
    return state, metrics, jax.tree.map(_join, rows)

  return wrapped


def sharded(
  step: Callable[..., Any], state: Any, config: qwen3.Config, mesh: Mesh
) -> tuple[Callable[..., Any], Any]:
  """`step` under jit, with state sharded by `RULES` and trees over data.

  Args:
    step: `(state, batch) -> (state, metrics, rows)`.
    state: a TrainState, wherever it lives.
    config: shape of the policy, for the parameters' logical axes.
    mesh: axes "data" and "model".

  Returns:
    The step, and the state laid out on the mesh.
  """
  whole = NamedSharding(mesh, PartitionSpec())
  by_tree = NamedSharding(mesh, PartitionSpec(None, AXIS))
  layout = state_sharding(state, config, mesh)
  run = jax.jit(
    step,
    in_shardings=(layout, by_tree),
    out_shardings=(layout, whole, by_tree),
    donate_argnums=0,
  )
  return run, jax.device_put(state, layout)


def mesh(model_parallel: int = 1) -> Mesh:
  """All devices as ("data", "model")."""
  devices = np.array(jax.devices()).reshape(-1, model_parallel)
  return Mesh(devices, (AXIS, "model"))


def state_sharding(state: Any, config: qwen3.Config, mesh: Mesh) -> Any:
  """A NamedSharding for every leaf: parameters and their moments alike."""
  boxed = jax.eval_shape(
    functools.partial(qwen3.init_params, config), jax.random.key(0)
  )
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
  by_path = {
    jax.tree_util.keystr(path): spec
    for path, spec in jax.tree_util.tree_leaves_with_path(
      specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
  }

  def place(path, leaf):
    # A moment's path ends in the path of its parameter.
    for start in range(len(path)):
      spec = by_path.get(jax.tree_util.keystr(path[start:]))
      if spec is not None:
        return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, state)


def _fitting(spec, shape, mesh):
  """Drops the axes that do not divide their dimension."""
  return PartitionSpec(
    *(
      axis if axis and not size % mesh.shape[axis] else None
      for axis, size in zip(spec, shape, strict=True)
    )
  )


def _split(count):
  def split(x):
    x = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
    return np.moveaxis(x, 1, 0)

  return split


def _join(x):
  x = np.moveaxis(np.asarray(x), 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])
