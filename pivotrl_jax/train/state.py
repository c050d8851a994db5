"""What a training run is, between steps; and its optimizer."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

# What of a config only Adam reads.
ADAM = (
    "train.learning_rate", "train.warmup_steps", "train.weight_decay",
    "train.clip_norm",
)  # fmt: skip


@flax.struct.dataclass
class TrainState:
  """Parameters, optimizer state and the count of finished steps."""

  step: jax.Array
  params: Any
  opt_state: Any


def optimizer(
  *,
  learning_rate: float,
  warmup_steps: int,
  weight_decay: float,
  clip_norm: float,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """AdamW, linear warm-up to a constant rate, clipping by global norm."""
  schedule = learning_rate
  if warmup_steps:
    schedule = warm_up(learning_rate, warmup_steps)
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(
    clip, optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay)
  )


def warm_up(rate: float, steps: int) -> optax.Schedule:
  """To a constant rate, linearly; the first update already moves: step 0 has
  `rate / steps`.
  """
  return optax.linear_schedule(rate / steps, rate, max(1, steps - 1))


def frozen(
  tx: optax.GradientTransformation, chosen: Callable[[Any], bool]
) -> optax.GradientTransformation:
  """`tx`, but what is chosen stays as it is, and so do its moments.

  The state is that of `tx`, so that a run can go on from one without.

  Args:
    tx: an optimizer, whose moments' paths end in those of their parameters.
    chosen: path of a parameter, or of a moment of it -> whether it stays.
  """

  def update(grads, state, params=None):
    updates, after = tx.update(grads, state, params)
    updates = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if chosen(path) else x, updates
    )
    after = jax.tree_util.tree_map_with_path(
      lambda path, old, new: old if chosen(path) else new, state, after
    )
    return updates, after

  return optax.GradientTransformation(tx.init, update)


def create(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """A state that has taken no step; a copy of the parameters, in float32."""
  params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
