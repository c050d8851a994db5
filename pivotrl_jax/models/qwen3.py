"""Qwen3 (dense) in Flax Linen, over trajectory trees.

RMSNorm, QK-norm, rotary positions, grouped-query attention and SwiGLU, with
the parameter names of Hugging Face (`models/hf.py` maps them one to one).

The unit of compute is a trunk `[T]` with N branches `[A]` on it. A branch of
an action starts with the *last prompt token* and ends before the action's
last token, so that its A outputs predict the action's A tokens; it sees the
trunk before that token and its own past. Hence the trunk is only ever read
through its keys and values: its last layer's outputs and its vocabulary
projection do not exist here. Trees stand side by side in a row of trunk
tokens and one of branch tokens; what a token sees is two integers (`Spans`).

Three ways through the same layers:
- `__call__`: trunk and branches at once, for the loss;
- `prefill`: the trunk's keys and values, once;
- `decode`: one token of every branch, from the trunk's and its own cache.
"""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pivotrl_jax import errors
from pivotrl_jax.models import attention


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a Qwen3, in the words of a Hugging Face config.json."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 1e6
  tie_word_embeddings: bool = False

  def __post_init__(self):
    if self.num_attention_heads % self.num_key_value_heads:
      raise errors.InputError(
        f"config.json: num_attention_heads {self.num_attention_heads};"
        " expected a multiple of num_key_value_heads"
        f" {self.num_key_value_heads}"
      )


def config_from_hf(values: dict[str, Any]) -> Config:
  """Reads the fields of a (checked) config.json; see `hf.read_config`."""
  rope = values.get("rope_parameters") or {}
  theta = rope.get("rope_theta", values.get("rope_theta", Config.rope_theta))
  heads = values["num_attention_heads"]
  return Config(
    vocab_size=values["vocab_size"],
    hidden_size=values["hidden_size"],
    intermediate_size=values["intermediate_size"],
    num_hidden_layers=values["num_hidden_layers"],
    num_attention_heads=heads,
    num_key_value_heads=values.get("num_key_value_heads", heads),
    head_dim=values.get("head_dim") or values["hidden_size"] // heads,
    rms_norm_eps=values.get("rms_norm_eps", Config.rms_norm_eps),
    rope_theta=float(theta),
    tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
  )


@flax.struct.dataclass
class Spans:
  """What each token of a row sees, as (start, end) places; equal: padding.

  Attributes:
    trunk: `[B, T]` each, of a trunk token on its trunk, itself included.
    past: `[B, S]` each, of a branch token on the trunks.
    own: `[B, S]` each, of a branch token on the branch tokens, itself
      included.
  """

  trunk: tuple[jax.Array, jax.Array]
  past: tuple[jax.Array, jax.Array]
  own: tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
  """`x / rms(x) * scale`, in float32."""

  eps: float
  axis_name: str = "embed"

  @nn.compact
  def __call__(self, x):
    scale = self.param(
      "scale",
      nn.with_logical_partitioning(nn.initializers.ones, (self.axis_name,)),
      (x.shape[-1],),
    )
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
    return (wide * scale).astype(x.dtype)


def _linear(name, features, axes, dtype):
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    name=name,
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.normal(0.02), axes
    ),
  )


class Attention(nn.Module):
  """Projections, QK-norm and rotary positions of one layer."""

  config: Config
  dtype: Any

  def setup(self):
    c = self.config
    heads = c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    self.q_proj = _linear("q_proj", heads, ("embed", "heads"), self.dtype)
    self.k_proj = _linear("k_proj", kv, ("embed", "kv"), self.dtype)
    self.v_proj = _linear("v_proj", kv, ("embed", "kv"), self.dtype)
    self.o_proj = _linear(
      "o_proj", c.hidden_size, ("heads", "embed"), self.dtype
    )
    self.q_norm = RMSNorm(c.rms_norm_eps, "head_dim", name="q_norm")
    self.k_norm = RMSNorm(c.rms_norm_eps, "head_dim", name="k_norm")

  def query(self, x, rope):
    """`[..., D]` to queries `[..., H, C]`; `rope` turns them."""
    c = self.config
    q = self.q_proj(x).reshape(*x.shape[:-1], c.num_attention_heads, c.head_dim)
    return attention.rotate(self.q_norm(q), rope)

  def key_value(self, x, rope):
    """`[..., S, D]` to keys and values `[..., K, S, C]`."""
    c = self.config
    shape = (*x.shape[:-1], c.num_key_value_heads, c.head_dim)
    k = attention.rotate(self.k_norm(self.k_proj(x).reshape(shape)), rope)
    v = self.v_proj(x).reshape(shape)
    return jnp.moveaxis(k, -3, -2), jnp.moveaxis(v, -3, -2)

  def output(self, heads):
    """`[..., H, C]` to `[..., D]`."""
    return self.o_proj(heads.reshape(*heads.shape[:-2], -1))


class MLP(nn.Module):
  """SwiGLU."""

  config: Config
  dtype: Any

  @nn.compact
  def __call__(self, x):
    c = self.config
    wide = ("embed", "mlp")
    gate = _linear("gate_proj", c.intermediate_size, wide, self.dtype)(x)
    up = _linear("up_proj", c.intermediate_size, wide, self.dtype)(x)
    return _linear("down_proj", c.hidden_size, ("mlp", "embed"), self.dtype)(
      _swiglu(gate, up)
    )


@jax.custom_jvp
def _swiglu(gate, up):
  """`silu(gate) * up`."""
  return gate * up / (1 + jnp.exp(-gate))


@_swiglu.defjvp
def _swiglu_jvp(primals, tangents):
  # Transposed, both gradients end with a division, which XLA never computes
  # twice. Else it forms them a second time on CPU, column by column, for the
  # products that give the kernels' gradients: 5 times slower than a copy.
  gate, up = primals
  d_gate, d_up = tangents
  bulk = 1 + jnp.exp(-gate)  # Where it overflows, what it divides is 0.
  slope = up * (1 + gate * (1 - 1 / bulk))
  return gate * up / bulk, slope * (d_gate / bulk) + gate * (d_up / bulk)


class Layer(nn.Module):
  """One decoder layer, over trunks `[B, T, D]` and branches `[B, S, D]`."""

  config: Config
  dtype: Any
  attention: str  # One of `attention.BODIES`.

  def setup(self):
    c = self.config
    self.input_layernorm = RMSNorm(c.rms_norm_eps, name="input_layernorm")
    self.self_attn = Attention(c, self.dtype, name="self_attn")
    self.post_attention_layernorm = RMSNorm(
      c.rms_norm_eps, name="post_attention_layernorm"
    )
    self.mlp = MLP(c, self.dtype, name="mlp")

  def _finish(self, x, heads):
    x = x + self.self_attn.output(heads)
    return x + self.mlp(self.post_attention_layernorm(x))

  def trunk(self, x, rope, span, *, last):
    """The trunk's next hidden states (None of the last layer) and its KV.

    Args:
      x: `[B, T, D]`.
      rope: rotary tables of its positions.
      span: `Spans.trunk`.
      last: whether this is the last layer.
    """
    normed = self.input_layernorm(x)
    kv = self.self_attn.key_value(normed, rope)
    if last:
      return None, kv
    q = self.self_attn.query(normed, rope)
    start, end = span
    heads = attention.attend_self(q, *kv, end, start, body=self.attention)
    return self._finish(x, heads), kv

  def branches(self, x, rope, trunk_kv, spans, reach):
    """`[B, S, D]` to the same, reading the trunks too."""
    normed = self.input_layernorm(x)
    q = self.self_attn.query(normed, rope)
    kv = self.self_attn.key_value(normed, rope)
    start, end = spans.past
    past = attention.attend(q, *trunk_kv, end, start, body=self.attention)
    start, end = spans.own
    own = attention.attend_near(
      q, *kv, end, start, reach=reach, body=self.attention
    )
    return self._finish(x, attention.merge(past, own))

  def both(self, trunk, branch, ropes, spans, reach, last):
    """One layer of `Qwen3.__call__`."""
    trunk, kv = self.trunk(trunk, ropes[0], spans.trunk, last=last)
    return trunk, self.branches(branch, ropes[1], kv, spans, reach)

  def decode(self, x, rope, trunk_kv, visible, cache, step):
    """`[B, N, D]`, one token a branch, at place `step` of its cache.

    Args:
      x: `[B, N, D]`.
      rope: rotary tables of the tokens' positions.
      trunk_kv: keys and values `[B, K, T, C]`.
      visible: `[B, N]` trunk tokens each branch sees.
      cache: the branches' keys `[B * N, K, C, S]` and values
        `[B * N, K, S, C]`: with more leading axes XLA updates a copy on CPU.
      step: scalar, how many tokens of each branch are in the cache.

    Returns:
      `[B, N, D]` and the cache with this token's keys and values.
    """
    normed = self.input_layernorm(x)[:, :, None]
    q = self.self_attn.query(normed, rope)[:, :, 0]
    new_k, new_v = (
      part.reshape(-1, *part.shape[2:])
      for part in self.self_attn.key_value(normed, rope)
    )
    put = jax.lax.dynamic_update_slice_in_dim
    cache = (
      put(cache[0], jnp.swapaxes(new_k, 2, 3), step, 3),
      put(cache[1], new_v, step, 2),
    )
    past = attention.attend_trunk(q, *trunk_kv, visible, body=self.attention)
    own = attention.attend_own(q, *cache, step + 1)
    return self._finish(x, attention.merge(past, own)), cache


class Qwen3(nn.Module):
  """The policy. Hidden states out; `unembedding` gives the logits' matrix.

  Attributes:
    config: its shape.
    dtype: of activations; parameters stay as they are stored.
    remat: recompute each layer in the backward pass.
    attention: what computes it, one of `attention.BODIES`; all but `cudnn`
      are differentiable in forward mode too.
  """

  config: Config
  dtype: Any = jnp.float32
  remat: bool = False
  attention: str = "auto"

  def setup(self):
    c = self.config
    self.embed_tokens = nn.Embed(
      c.vocab_size,
      c.hidden_size,
      dtype=self.dtype,
      name="embed_tokens",
      embedding_init=nn.with_logical_partitioning(
        nn.initializers.normal(0.02), ("vocab", "embed")
      ),
    )
    layer = Layer
    if self.remat:
      layer = nn.remat(Layer, methods=["both"], static_argnums=(5, 6))
    self.layers = [
      layer(c, self.dtype, self.attention, name=f"layers_{i}")
      for i in range(c.num_hidden_layers)
    ]
    self.norm = RMSNorm(c.rms_norm_eps, name="norm")
    if not c.tie_word_embeddings:
      self.lm_head = _linear(
        "lm_head", c.vocab_size, ("embed", "vocab"), self.dtype
      )

  def __call__(self, trunk, branch, spans, *, reach):
    """Hidden states of the branches' tokens.

    Args:
      trunk: `[B, T]` token ids, trunk after trunk.
      branch: `[B, S]` token ids, branch after branch, each from its last
        prompt token on.
      spans: what each sees; hence their positions.
      reach: no token of a branch stands further from its first.

    Returns:
      `[B, S, D]`, normed: times `unembedding` they are the logits of the
      tokens that follow.
    """
    chex.assert_rank([trunk, branch], [2, 2])
    chex.assert_shape(list(spans.trunk), trunk.shape)
    chex.assert_shape([*spans.past, *spans.own], branch.shape)
    x, y = self.embed_tokens(trunk), self.embed_tokens(branch)
    counts = [end - start for start, end in (spans.past, spans.own)]
    ropes = (
      self._rope(spans.trunk[1] - spans.trunk[0] - 1),
      self._rope(counts[0] + counts[1] - 1),
    )
    for i, layer in enumerate(self.layers):
      last = i == len(self.layers) - 1
      x, y = layer.both(x, y, ropes, spans, reach, last)
    if self.is_initializing() and not self.config.tie_word_embeddings:
      self.lm_head(y)
    return self.norm(y)

  def prefill(self, trunk, length):
    """Keys and values `[B, K, T, C]` of the trunk, a pair a layer.

    Those from `length` `[B]` on are of no use.
    """
    x, caches = self.embed_tokens(trunk), []
    place = jnp.arange(trunk.shape[1])
    rope = self._rope(place)
    end = jnp.where(place < length[:, None], place + 1, 0)
    span = jnp.zeros_like(end), end
    for i, layer in enumerate(self.layers):
      x, kv = layer.trunk(x, rope, span, last=i == len(self.layers) - 1)
      caches.append(kv)
    return tuple(caches)

  def decode(self, tokens, trunk_kv, visible, cache, step):
    """Hidden states `[B, N, D]` of one token `[B, N]` a branch, and cache."""
    x, caches = self.embed_tokens(tokens), []
    rope = self._rope((visible + step)[..., None])
    for layer, trunk, own in zip(self.layers, trunk_kv, cache, strict=True):
      x, own = layer.decode(x, rope, trunk, visible, own, step)
      caches.append(own)
    return self.norm(x), tuple(caches)

  def _rope(self, positions):
    """Rotary tables, once for all layers: on CPU a sine costs a product."""
    c = self.config
    return attention.rotary_tables(positions, c.head_dim, c.rope_theta)


def unembedding(params: Any, config: Config) -> jax.Array:
  """The matrix `[D, V]` from hidden states to logits."""
  if config.tie_word_embeddings:
    return params["embed_tokens"]["embedding"].T
  return params["lm_head"]["kernel"]


def init_params(config: Config, key: jax.Array) -> Any:
  """Random parameters, boxed with their logical axes."""
  ids = jnp.zeros((1, 2), jnp.int32)
  nothing = Spans(*((ids, ids),) * 3)
  variables = Qwen3(config).init(key, ids, ids, nothing, reach=1)
  return variables["params"]
