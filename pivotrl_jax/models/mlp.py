"""SwiGLU, the feed-forward part of a dense layer and of an expert."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pivotrl_jax.models import lora


class Linear(nn.Dense):
  """A projection, and what an adapter beside its kernel adds (`lora.py`)."""

  def __call__(self, x):
    out = super().__call__(x)
    if not self.has_variable("params", lora.A):
      return out
    a, b = (
      self.get_variable("params", name).astype(self.dtype)
      for name in (lora.A, lora.B)
    )
    return out + (x.astype(self.dtype) @ a) @ b


def linear(name: str, features: int, axes: tuple[str, str], dtype: Any):
  """A projection without bias; `axes` are the logical ones of its kernel."""
  return Linear(
    features,
    use_bias=False,
    dtype=dtype,
    name=name,
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.normal(0.02), axes
    ),
  )


class MLP(nn.Module):
  """SwiGLU, `width` wide inside."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    wide = ("embed", "mlp")
    gate = linear("gate_proj", self.width, wide, self.dtype)(x)
    up = linear("up_proj", self.width, wide, self.dtype)(x)
    return linear("down_proj", x.shape[-1], ("mlp", "embed"), self.dtype)(
      swiglu(gate, up)
    )


@jax.custom_jvp
def swiglu(gate, up):
  """`silu(gate) * up`."""
  return gate * up / (1 + jnp.exp(-gate))


@swiglu.defjvp
def _swiglu_jvp(primals, tangents):
  # Transposed, both gradients end with a division, which XLA never computes
  # twice. Else it forms them a second time on CPU, column by column, for the
  # products that give the kernels' gradients: 5 times slower than a copy.
  gate, up = primals
  d_gate, d_up = tangents
  bulk = 1 + jnp.exp(-gate)  # Where it overflows, what it divides is 0.
  slope = up * (1 + gate * (1 - 1 / bulk))
  return gate * up / bulk, slope * (d_gate / bulk) + gate * (d_up / bulk)
