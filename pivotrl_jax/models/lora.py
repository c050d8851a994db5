"""LoRA: low-rank adapters beside frozen matrices (arXiv:2106.09685).

A matrix W `[D, F]` with an adapter acts as W + scale A B, with A `[D, r]` and
B `[r, F]`. Adapters are a tree of their own, trained alone; beside their base
they stand where `mlp.Linear` finds them.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

A, B = "lora_a", "lora_b"
# Matrices that may have one, as Hugging Face names them. Experts are stacks
# of matrices, which have none.
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


# Those of a layer that experts take the place of.
OF_MLP = TARGETS[4:]


@flax.struct.dataclass
class Base:
  """What adapters stand beside.

  Attributes:
    params: the policy's parameters, frozen.
    scale: of A B; alpha / r.
  """

  params: Any
  scale: float = flax.struct.field(pytree_node=False)


def names(targets: str) -> list[str]:
  """`"q_proj, v_proj"` -> the two."""
  return [name.strip() for name in targets.split(",")]


def init(
  params: Any, *, rank: int, targets: Sequence[str], seed: int
) -> dict[str, Any]:
  """New adapters, which change nothing: A uniform as in PEFT, B zero.

  Args:
    params: of the policy.
    rank: r.
    targets: names of matrices, some of `TARGETS`.
    seed: of A.

  Returns:
    `{"layers_0": {"self_attn": {"q_proj": {A: [D, r], B: [r, F]}}}}` and so on.
  """
  adapters: dict[str, Any] = {}
  key = jax.random.key(seed)
  for path, kernel in jax.tree_util.tree_leaves_with_path(params):
    *place, name, leaf = (entry.key for entry in path)
    if leaf != "kernel" or name not in targets:
      continue
    node = adapters
    for part in place:
      node = node.setdefault(part, {})
    key, own = jax.random.split(key)
    bound = 1 / math.sqrt(kernel.shape[0])
    shape = (kernel.shape[0], rank)
    node[name] = {
      A: jax.random.uniform(own, shape, minval=-bound, maxval=bound),
      B: jnp.zeros((rank, kernel.shape[1])),
    }
  return adapters


def join(base: Base | None, adapters: Any) -> Any:
  """Parameters with adapters in them, as the policy is applied with.

  Without a base they are all there is.
  """
  if base is None:
    return adapters
  return _with(
    base.params,
    adapters,
    lambda kernel, a, b: {"kernel": kernel, A: a, B: base.scale * b},
  )


def merge(base: Base | None, adapters: Any) -> Any:
  """Parameters of the same policy without adapters: W + scale A B, float32."""
  if base is None:
    return adapters
  return _with(
    base.params,
    adapters,
    lambda kernel, a, b: {
      "kernel": kernel.astype(jnp.float32)
      + base.scale * jnp.dot(a, b, precision="highest")
    },
  )


def beside(base: Base | None, function: Callable[..., Any]):
  """`function` of (params, ...) as one of (adapters, ...)."""
  if base is None or function is None:
    return function
  return lambda adapters, *rest, **knobs: function(
    join(base, adapters), *rest, **knobs
  )


def _with(params, adapters, put):
  """`params`, in which `put` makes anew what has an adapter."""
  if A in adapters:
    return put(params["kernel"], adapters[A], adapters[B])
  return params | {
    name: _with(params[name], below, put) for name, below in adapters.items()
  }
