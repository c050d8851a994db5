"""`train_step` on devices: one, replicated by pmap, or sharded by jit.

Each wrapper takes the same state and batch and gives the same numbers; they
differ in where the arrays live. pmap is in maintenance mode upstream: its
wrapper is the one to delete.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax.models import axes
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3

# What pmap sums over.
AXIS = "devices"
# Axes of a mesh, those whose devices talk most last.
AXES = (*axes.LINES, axes.TENSOR)
# Logical axes of the parameters (models/) to axes of the mesh, the first that
# is free. What no rule puts on "data" is whole on each of its devices.
RULES = (
  ("vocab", axes.TENSOR),
  ("experts", axes.EXPERT),
  ("embed", (axes.FSDP, axes.EXPERT)),
  ("embed", axes.FSDP),
  ("heads", axes.TENSOR),
  ("kv", axes.TENSOR),
  ("mlp", axes.TENSOR),
  ("head_dim", None),
  ("router", None),
)


def jitted(
  step: Callable[..., Any], base: lora.Base | None = None
) -> Callable[..., Any]:
  """`step(state, batch)` on the default device; the state is donated.

  With a base the state is of adapters, and `step` takes it as a third.
  """
  run = jax.jit(step, donate_argnums=0)
  return lambda state, batch: run(state, batch, *_given(base))


def pmapped(
  step: Callable[..., Any], base: lora.Base | None = None
) -> Callable[..., Any]:
  """`step` with the state replicated and trees `B` split over all devices.

  `step` must take `axis_name`. State goes in and comes out unreplicated; of
  the batch each process takes what is its devices' part.
  """
  count, here = jax.local_device_count(), hosts.share(jax.device_count())
  run = jax.pmap(functools.partial(step, axis_name=AXIS), axis_name=AXIS)

  def everywhere(tree):
    return jax.tree.map(
      lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree
    )

  def wrapped(state, batch):
    state, metrics, rows = run(
      everywhere(state),
      jax.tree.map(_split(here), batch),
      *_given(everywhere(base)),
    )
    # Of one device, and once all have ended: what is sliced while devices wait
    # for each other may take the thread that one of them needs.
    state, metrics = jax.tree.map(
      lambda x: x.addressable_data(0)[0],
      jax.block_until_ready((state, metrics)),
    )
    rows = hosts.gathered(jax.tree.map(np.asarray, rows))
    return state, metrics, jax.tree.map(_join, *rows)

  return wrapped


def sharded(
  step: Callable[..., Any],
  state: Any,
  config: qwen3.Config,
  mesh: Mesh,
  base: lora.Base | None = None,
) -> tuple[Callable[..., Any], Any]:
  """`step` under jit, with state sharded by `RULES` and lines over devices.

  Args:
    step: `(state, batch) -> (state, metrics, rows)`.
    state: a TrainState, wherever it lives.
    config: shape of the policy, for the parameters' logical axes.
    mesh: of `mesh`.
    base: see `jitted`.

  Returns:
    The step, and the state laid out on the mesh.
  """
  layout, frozen = (state_sharding(x, config, mesh) for x in (state, base))
  base = hosts.placed(base, frozen)
  run, by_line = jitted_over(step, layout, mesh, frozen)

  def wrapped(state, batch):
    # Of the batch too some may lie elsewhere: what the reference says of it.
    batch = hosts.placed(batch, by_line)
    with jax.set_mesh(mesh):  # Layers find it there.
      return run(state, batch, *_given(base))

  return wrapped, hosts.placed(state, layout)


def reading(
  function: Callable[[Any, Any], Any], train: Any
) -> Callable[[Any, Any], Any]:
  """`function(params, batch)` under jit, where `config.train` has them lie.

  What comes back is whole on every host.

  Args:
    function: of parameters and a TrainBatch.
    train: of a config.
  """
  on = of_config(train)
  if on is None:
    return jax.jit(function)
  whole = NamedSharding(on, PartitionSpec())
  by_line = NamedSharding(on, PartitionSpec(None, axes.LINES))
  run = jax.jit(function, out_shardings=whole)

  def wrapped(params, batch):
    if batch.mask.shape[1] % lines(train):  # Not a step's: of few lines.
      return run(params, hosts.placed(batch, whole))
    with jax.set_mesh(on):
      return run(params, hosts.placed(batch, by_line))

  return wrapped


def laid_out(train: Any, config: qwen3.Config, state: Any) -> Any:
  """A TrainState of a policy where `config.train` has it lie."""
  on = of_config(train)
  if on is None:
    return state
  return hosts.placed(state, state_sharding(state, config, on))


def jitted_over(
  step: Callable[..., Any], layout: Any, mesh: Mesh, frozen: Any = None
) -> tuple[Any, NamedSharding]:
  """`step` under jit on a mesh, and the sharding of a batch's arrays.

  It is to be lowered under `jax.set_mesh(mesh)`.

  Args:
    step: `(state, batch) -> (state, metrics, rows)`.
    layout: of the state, by `state_sharding`.
    mesh: of `mesh`.
    frozen: of a base's parameters, where the step takes one.
  """
  whole = NamedSharding(mesh, PartitionSpec())
  by_line = NamedSharding(mesh, PartitionSpec(None, axes.LINES))
  run = jax.jit(
    step,
    in_shardings=(layout, by_line, *_given(frozen)),
    out_shardings=(layout, whole, whole),  # Rows are read on every host.
    donate_argnums=0,
  )
  return run, by_line


def _given(base):
  return () if base is None else (base,)


def mesh(
  devices: Sequence[jax.Device] | None = None,
  *,
  data: int = 1,
  fsdp: int = -1,
  expert: int = 1,
  tensor: int = 1,
) -> Mesh:
  """Devices as ("data", "fsdp", "expert", "tensor").

  Lines of tries lie over all axes but the last. Of the sizes one may be -1:
  what the others leave.

  Args:
    devices: all there are, by default.
    data: devices that each hold all that the other axes divide.
    fsdp: devices among which parameters and moments are divided, gathered
      where they are used.
    expert: devices that share the experts of a layer; all else as by `fsdp`.
    tensor: devices that share each matrix and compute its part of a product.

  Raises:
    InputError: the devices cannot be divided so.
  """
  sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
  devices = jax.devices() if devices is None else devices
  count, free = len(devices), [n for n, x in sizes.items() if x == -1]
  taken = math.prod(x for x in sizes.values() if x != -1)
  if len(free) == 1 and not count % taken:
    sizes[free[0]] = count // taken
  elif free or taken != count:
    given = ", ".join(f"{name}={size}" for name, size in sizes.items())
    raise errors.InputError(
      f"--config.train.mesh: {given}, on {count} devices; expected sizes whose"
      f" product is {count}, at most one of them -1, for what is left"
    )
  shape = [sizes[axis] for axis in AXES]
  return Mesh(np.array(devices).reshape(shape), AXES)


def of_config(train: Any) -> Mesh | None:
  """The mesh of `config.train`; None where it has none."""
  return mesh(**train.mesh) if train.parallel == "sharded" else None


def lines(train: Any) -> int:
  """Devices, or groups of them, that each have lines of a batch to itself."""
  on = of_config(train)
  if on is None:
    return jax.device_count() if train.parallel == "pmap" else 1
  return axes.lines(on)


def check(train: Any, config: qwen3.Config) -> None:
  """InputError where a policy of this shape has no place on the mesh."""
  on = of_config(train)
  if on is None:
    return
  divided = {axes.TENSOR: "num_attention_heads"}
  if config.sparse_layers:
    divided[axes.EXPERT] = "num_experts"
  for axis, name in divided.items():
    if getattr(config, name) % on.shape[axis]:
      raise errors.InputError(
        f"--config.train.mesh.{axis}: {on.shape[axis]} devices; expected a"
        f" divisor of {name} {getattr(config, name)}"
      )
  shares, heads = on.shape[axes.TENSOR], config.num_key_value_heads
  if shares % heads and heads % shares:
    raise errors.InputError(
      f"--config.train.mesh.{axes.TENSOR}: {shares} devices; expected a divisor"
      f" or a multiple of num_key_value_heads {heads}"
    )


def layout(train: Any) -> Callable[[qwen3.Config], Any] | None:
  """Where `config.train` has parameters lie: a shape -> their shardings.

  None: on one device.
  """
  on = of_config(train)
  if on is None:
    return None

  def of(config):
    return state_sharding(nn.unbox(_boxed(config)), config, on)

  return of


def _boxed(config):
  """The parameters' shapes with their logical axes."""
  return jax.eval_shape(
    functools.partial(qwen3.init_params, config), jax.random.key(0)
  )


def state_sharding(state: Any, config: qwen3.Config, mesh: Mesh) -> Any:
  """A NamedSharding for every leaf: parameters and their moments alike."""
  specs = nn.logical_to_mesh(nn.get_partition_spec(_boxed(config)), RULES)
  by_path = {}
  for path, spec in jax.tree_util.tree_leaves_with_path(
    specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
  ):
    by_path[jax.tree_util.keystr(path)] = spec
    if path[-1].key == "kernel":  # An adapter has one axis of its matrix each.
      for name, own in ((lora.A, (spec[0], None)), (lora.B, (None, spec[1]))):
        place = (*path[:-1], jax.tree_util.DictKey(name))
        by_path[jax.tree_util.keystr(place)] = PartitionSpec(*own)

  def place(path, leaf):
    # A moment's path ends in the path of its parameter.
    for start in range(len(path)):
      spec = by_path.get(jax.tree_util.keystr(path[start:]))
      if spec is not None:
        return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, state)


def _fitting(spec, shape, mesh):
  """Drops axes, the last first, that do not divide their dimension."""

  def fitting(axes, size):
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    while size % math.prod(mesh.shape[axis] for axis in axes):
      axes = axes[:-1]
    return axes or None

  return PartitionSpec(*map(fitting, spec, shape))


def _split(here):
  """The part of the devices `here` of `[M, B, ...]`, a device a row."""
  count = jax.device_count()

  def split(x):
    x = np.asarray(x)
    x = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
    return np.moveaxis(x, 1, 0)[here]

  return split


def _join(*parts):
  x = np.moveaxis(np.concatenate(parts), 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])
