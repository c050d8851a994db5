"""Qwen3, dense or with a mixture of experts, in Flax Linen, over prefix tries.

RMSNorm, QK-norm, rotary positions, grouped-query attention and SwiGLU (or
experts of it), with the parameter names of Hugging Face (`models/hf.py` maps
them one to one).

The unit of compute is a trie `[T]` of prompts with branches `[A]` on it. A
branch of an action starts with the *last prompt token* and ends before the
action's last token, so that its A outputs predict the action's A tokens; it
sees the path above that token and its own past. Hence the trie is only ever
read through its keys and values: its last layer's outputs and its vocabulary
projection do not exist here. Tries stand side by side in a line of prompt
tokens and one of branch tokens; what a token sees is two integers (`Layout`).

Three ways through the same layers:
- `__call__`: tries and branches at once, for the loss;
- `prefill`: the keys and values of some tokens of a trie, once;
- `decode`: one token of every branch, from the trie's and its own cache.
"""

import dataclasses
import functools
import itertools
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pivotrl_jax import errors
from pivotrl_jax.models import attention
from pivotrl_jax.models import axes
from pivotrl_jax.models import mlp
from pivotrl_jax.models import moe
from pivotrl_jax.models import sums


# Architectures, as a config.json names them.
DENSE, SPARSE = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"


# What of a layer is kept for the backward pass: all; its input; that and what
# its matrices give (not scores nor what is normed or multiplied).
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT |= {False: REMAT["none"], True: REMAT["full"]}


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
  num_experts: int = 0
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  norm_topk_prob: bool = False
  mlp_only_layers: tuple[int, ...] = ()
  decoder_sparse_step: int = 1

  def __post_init__(self):
    if self.num_experts_per_tok > self.num_experts:
      raise errors.InputError(
        f"config.json: num_experts_per_tok {self.num_experts_per_tok};"
        f" expected at most num_experts {self.num_experts}"
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise errors.InputError(
        f"config.json: num_attention_heads {self.num_attention_heads};"
        " expected a multiple of num_key_value_heads"
        f" {self.num_key_value_heads}"
      )

  @property
  def sparse_layers(self) -> tuple[int, ...]:
    """The layers that have experts."""
    if not self.num_experts:
      return ()
    return tuple(
      i
      for i in range(self.num_hidden_layers)
      if i not in self.mlp_only_layers
      and not (i + 1) % self.decoder_sparse_step
    )


def config_from_hf(values: dict[str, Any]) -> Config:
  """Reads the fields of a (checked) config.json; see `hf.read_config`."""
  rope = values.get("rope_parameters") or {}
  theta = rope.get("rope_theta", values.get("rope_theta", Config.rope_theta))
  heads = values["num_attention_heads"]
  experts = {}
  if values.get("architectures") == [SPARSE]:
    experts = {
      "num_experts": values["num_experts"],
      "num_experts_per_tok": values["num_experts_per_tok"],
      "moe_intermediate_size": values["moe_intermediate_size"],
      "norm_topk_prob": values["norm_topk_prob"],
      "mlp_only_layers": tuple(values.get("mlp_only_layers") or ()),
      "decoder_sparse_step": values["decoder_sparse_step"],
    }
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
    **experts,
  )


@flax.struct.dataclass
class Layout:
  """Where the tokens of lines stand; see `attention.attend`.

  Attributes:
    ends: `[B, T]` of the tries' tokens: the place behind all that sees each;
      0 is padding, behind all others.
    depths: `[B, T]` their positions.
    past: `[B, S]` of the branches' tokens: the place in the trie up to which
      each sees; -1 where it sees nothing of it.
    branch_ends: `[B, S]` the place behind each one's branch; 0 is padding.
    branch_depths: `[B, S]` their positions.
  """

  ends: jax.Array
  depths: jax.Array
  past: jax.Array
  branch_ends: jax.Array
  branch_depths: jax.Array


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
    wide = sums.scaled(
      wide, jax.lax.rsqrt(jnp.mean(wide**2, -1) + self.eps)
    )
    # XLA for CPU sums `[1, T, D]` over T some 60 times slower than `[T, D]`.
    wide = wide.reshape(*(n for n in x.shape[:-1] if n > 1), x.shape[-1])
    return (wide * scale).reshape(x.shape).astype(x.dtype)


class Attention(nn.Module):
  """Projections, QK-norm and rotary positions of one layer."""

  config: Config
  dtype: Any

  def setup(self):
    c = self.config
    heads = c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    self.q_proj = mlp.linear("q_proj", heads, ("embed", "heads"), self.dtype)
    self.k_proj = mlp.linear("k_proj", kv, ("embed", "kv"), self.dtype)
    self.v_proj = mlp.linear("v_proj", kv, ("embed", "kv"), self.dtype)
    self.o_proj = mlp.linear(
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


class Layer(nn.Module):
  """One decoder layer, over tries `[B, T, D]` and branches `[B, S, D]`."""

  config: Config
  dtype: Any
  attention: str  # One of `attention.BODIES`.
  sparse: bool = False  # Experts in place of one MLP.
  frozen: bool = False  # No derivative reaches their router.

  def setup(self):
    c = self.config
    self.input_layernorm = RMSNorm(c.rms_norm_eps, name="input_layernorm")
    self.self_attn = Attention(c, self.dtype, name="self_attn")
    self.post_attention_layernorm = RMSNorm(
      c.rms_norm_eps, name="post_attention_layernorm"
    )
    if self.sparse:
      self.mlp = moe.MoE(
        num_experts=c.num_experts,
        top_k=c.num_experts_per_tok,
        width=c.moe_intermediate_size,
        normalized=c.norm_topk_prob,
        dtype=self.dtype,
        frozen=self.frozen,
        name="mlp",
      )
    else:
      self.mlp = mlp.MLP(c.intermediate_size, self.dtype, name="mlp")

  def _finish(self, x, heads, tokens=None):
    x = x + self.self_attn.output(heads)
    normed = self.post_attention_layernorm(x)
    return x + (self.mlp(normed, tokens) if self.sparse else self.mlp(normed))

  def trie(self, x, rope, ends, *, last, tokens=None):
    """The tries' next hidden states (None of the last layer) and their KV.

    Args:
      x: `[B, T, D]`.
      rope: rotary tables of its positions.
      ends: `Layout.ends`.
      last: whether this is the last layer.
      tokens: what a router is told of them.
    """
    normed = self.input_layernorm(x)
    kv = self.self_attn.key_value(normed, rope)
    if last:
      return None, kv
    q = self.self_attn.query(normed, rope)
    heads = attention.attend_self(q, *kv, ends, body=self.attention)
    return self._finish(x, heads, tokens), kv

  def branches(self, x, rope, trie_kv, layout, reach, tokens=None):
    """`[B, S, D]` to the same, reading the tries too."""
    normed = self.input_layernorm(x)
    q = self.self_attn.query(normed, rope)
    kv = self.self_attn.key_value(normed, rope)
    past = attention.attend(
      q, *trie_kv, layout.past, layout.ends, body=self.attention
    )
    own = attention.attend_near(
      q, *kv, layout.branch_ends, reach=reach, body=self.attention
    )
    return self._finish(x, attention.merge(past, own), tokens)

  def both(self, trie, branch, ropes, layout, reach, last, tokens, kv):
    """`trie` where its keys and values are not given, and `branches` where
    there are any; both hidden states, and the keys and values.
    """
    if kv is None:
      trie, kv = self.trie(
        axes.laid(trie, axes.LINES),
        ropes[0],
        layout.ends,
        last=last,
        tokens=tokens[0],
      )
    if branch is not None:
      branch = self.branches(
        axes.laid(branch, axes.LINES), ropes[1], kv, layout, reach, tokens[1]
      )
    return trie, branch, kv

  def prefill(self, x, rope, pool, places, ends, *, last):
    """The next hidden states of some tokens, and the pool with their KV.

    Args:
      x: `[1, C, D]`.
      rope: rotary tables of their positions.
      pool: keys and values `[K, T, C]` of a trie; those of all tokens above
        these, or among these, count.
      places: `[C]` theirs in the trie, T or more where there is no token.
      ends: `[T]` of the trie.
      last: whether this is the last layer.
    """
    normed = self.input_layernorm(x)
    pool = tuple(
      old.at[:, places].set(new[0], mode="drop", unique_indices=True)
      for old, new in zip(
        pool, self.self_attn.key_value(normed, rope), strict=True
      )
    )
    if last:
      return None, pool
    q = self.self_attn.query(normed, rope)
    seen = jnp.where(places < len(ends), places, -1)
    heads, _ = attention.attend_apart(
      q, *(x[None] for x in pool), seen[None], ends[None], body=self.attention
    )
    return self._finish(x, heads), pool

  def decode(self, x, rope, trie, past, cache, step):
    """`[B, N, D]`, one token a branch, at place `step` of its cache.

    Args:
      x: `[B, N, D]`.
      rope: rotary tables of the tokens' positions.
      trie: keys of `attention.trie_keys`, values `[B, K, T, C]`, and `ends`
        `[B, T]`.
      past: `[B, N]` the place up to which each branch sees.
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
    k, v, ends = trie
    past = attention.attend_trie(q, k, v, past, ends, body=self.attention)
    own = attention.attend_own(q, *cache, step + 1)
    return self._finish(x, attention.merge(past, own)), cache


class Qwen3(nn.Module):
  """The policy. Hidden states out; `unembedding` gives the logits' matrix.

  Attributes:
    config: its shape.
    dtype: of activations; parameters stay as they are stored.
    remat: what of a layer is kept for the backward pass, a key of `REMAT`.
    attention: what computes it, one of `attention.BODIES`; all but `cudnn`
      are differentiable in forward mode too.
    freeze_router: no derivative reaches the routers' own parameters.
    scan_layers: layers of one kind are one loop's body for tries and branches:
      a program of one size and, with `remat`, one layer's activations, whatever
      their number.
  """

  config: Config
  dtype: Any = jnp.float32
  remat: str | bool = "none"
  attention: str = "auto"
  freeze_router: bool = False
  scan_layers: bool = False

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
    self.layers = [
      self._layer(i, name=f"layers_{i}") for i in range(c.num_hidden_layers)
    ]
    self.norm = RMSNorm(c.rms_norm_eps, name="norm")
    if not c.tie_word_embeddings:
      self.lm_head = mlp.linear(
        "lm_head", c.vocab_size, ("embed", "vocab"), self.dtype
      )

  def __call__(
    self, trie, branch, layout, *, reach, tokens=(None, None), kv=None
  ):
    """Hidden states of the branches' tokens.

    Args:
      trie: `[B, T]` token ids, trie after trie.
      branch: `[B, S]` token ids, branch after branch, each from its last
        prompt token on.
      layout: where they stand.
      reach: no token of a branch stands further from its first.
      tokens: what routers are told of the tokens of tries and of branches, a
        pair of `moe.Tokens`; None: that all are alike.
      kv: what `keys` gives of the tries, where that is known.

    Returns:
      `[B, S, D]`, normed: times `unembedding` they are the logits of the
      tokens that follow.
    """
    chex.assert_rank([trie, branch], [2, 2])
    chex.assert_shape([layout.ends, layout.depths], trie.shape)
    y, _ = self._through(trie, branch, layout, reach, tokens, kv)
    if self.is_initializing() and not self.config.tie_word_embeddings:
      self.lm_head(y)
    return self.norm(axes.laid(y, axes.LINES))

  def keys(self, trie, layout, *, tokens=None):
    """Keys and values of tries, a pair `[B, K, T, C]` a layer, or
    `[L, B, K, T, C]` of the L layers of a loop.

    Args:
      trie: `[B, T]` token ids, trie after trie.
      layout: where they stand; what it says of branches is not read.
      tokens: what routers are told of them.
    """
    return self._through(trie, None, layout, 0, (tokens, None), None)[1]

  def _through(self, trie, branch, layout, reach, tokens, kv):
    """The branches' hidden states, if there are any, and the tries' keys."""
    x = self._embed(trie) if kv is None else None
    y = None if branch is None else self._embed(branch)
    ropes = self._rope(layout.depths), self._rope(layout.branch_depths)
    sparse = self.config.sparse_layers
    found = []
    for at, run in enumerate(self._runs()):
      last = run[-1] == len(self.layers) - 1
      told = (None, None)
      if run[0] in sparse:
        which = slice(sparse.index(run[0]), sparse.index(run[-1]) + 1)
        told = tuple(t and t.layers(which) for t in tokens)
      known = None if kv is None else kv[at]
      if len(run) == 1:
        told = tuple(t and t.layers(0) for t in told)
        x, y, own = self.layers[run[0]].both(
          x, y, ropes, layout, reach, last, told, known
        )
      else:
        x, y, own = self._scanned(run, x, y, ropes, layout, reach, told, known)
      found.append(own)
    return y, found

  def _runs(self):
    """The layers, those together that are one loop: neighbours of one kind,
    but for the last layer, which is another for tries.
    """
    layers = range(len(self.layers))
    if not self.scan_layers:
      return [[i] for i in layers]
    kinds = itertools.groupby(
      layers, lambda i: (i in self.config.sparse_layers, i == layers[-1])
    )
    return [list(run) for _, run in kinds]

  def _scanned(self, run, x, y, ropes, layout, reach, told, known):
    """`Layer.both` of the layers of a run, in a loop."""
    params = [self.layers[i].variables["params"] for i in run]
    stacked = jax.tree.map(lambda *of: jnp.stack(of), *params)
    layer = self._layer(run[0], parent=None)
    sums = [moe.SUMS] if self.is_mutable_collection(moe.SUMS) else []
    # Keys that only their own layer's branches read are not kept.
    keeps = y is None

    def one(carry, of_layer):
      params, routes, known = of_layer
      tokens = tuple(
        t and t.replace(routes=r) for t, r in zip(told, routes, strict=True)
      )
      (x, y, own), wrote = layer.apply(
        {"params": params}, *carry, ropes, layout, reach, False, tokens, known,
        method="both", mutable=sums,
      )  # fmt: skip
      return (x, y), (own if keeps else None, wrote)

    routes = tuple(t and t.routes for t in told)
    (x, y), (own, wrote) = jax.lax.scan(one, (x, y), (stacked, routes, known))
    for name, of_layers in wrote.items():
      for at, i in enumerate(run):
        self.put_variable(
          name, f"layers_{i}", jax.tree.map(lambda w, n=at: w[n], of_layers)
        )
    return x, y, own

  def _layer(self, index, **place):
    c, kind = self.config, Layer
    if REMAT[self.remat] is not None:
      kind = nn.remat(
        Layer, methods=["both"], static_argnums=(5, 6),
        policy=REMAT[self.remat],
      )  # fmt: skip
    return kind(
      c,
      self.dtype,
      self.attention,
      sparse=index in c.sparse_layers,
      frozen=self.freeze_router,
      **place,
    )

  def prefill(self, tokens, places, depths, pool, ends):
    """The pool, a pair `[K, T, C]` a layer, with the KV of some tokens.

    Args:
      tokens, places, depths: `[C]`; places of T or more are padding. What
        these tokens see is among them or in the pool.
      pool: keys and values of a trie.
      ends: `[T]` of the trie.
    """
    x, pools = self.embed_tokens(tokens)[None], []
    rope = self._rope(depths[None])
    for i, kv in enumerate(pool):
      last = i == len(self.layers) - 1
      x, kv = self._of_layer(
        i, "prefill", x, rope, kv, places, ends, last=last
      )
      pools.append(kv)
    return tuple(pools)

  def decode(self, tokens, tries, ends, past, depths, cache, step):
    """Hidden states `[B, N, D]` of one token a branch, and the cache.

    Args:
      tokens: `[B, N]`.
      tries: keys of `attention.trie_keys` and values `[B, K, T, C]`, a pair a
        layer.
      ends: `[B, T]` of the tries.
      past: `[B, N]` the place up to which each branch sees.
      depths: `[B, N]` position of each branch's first token.
      cache: of the branches, see `Layer.decode`.
      step: scalar, how many tokens are in the cache.
    """
    x, caches = self.embed_tokens(tokens), []
    rope = self._rope((depths + step)[..., None])
    for i, (kv, own) in enumerate(zip(tries, cache, strict=True)):
      x, own = self._of_layer(
        i, "decode", x, rope, (*kv, ends), past, own, step
      )
      caches.append(own)
    return self.norm(x), tuple(caches)

  def _of_layer(self, index, method, *args, **static):
    """A method of a layer, traced once for all layers of its kind."""
    routes = self.is_mutable_collection(moe.ROUTES)
    found, wrote = _applied(
      self._layer(index, parent=None),
      method,
      (moe.ROUTES,) if routes else (),
      tuple(static.items()),
      self.layers[index].variables["params"],
      *args,
    )
    for name, value in wrote.items():
      self.put_variable(name, f"layers_{index}", value)
    return found

  def _embed(self, ids):
    """`embed_tokens`, whose table is put together where it is divided by
    features: rows of the result are what lies on different devices.
    """
    table = self.embed_tokens.embedding.astype(self.dtype)
    return jnp.take(axes.laid(table, (axes.TENSOR,)), ids, axis=0)

  def _rope(self, positions):
    """Rotary tables, once for all layers: on CPU a sine costs a product."""
    c = self.config
    return attention.rotary_tables(positions, c.head_dim, c.rope_theta)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _applied(layer, method, mutable, static, params, *args):
  return layer.apply(
    {"params": params}, *args, **dict(static), method=method, mutable=mutable
  )


def unembedding(params: Any, config: Config) -> jax.Array:
  """The matrix `[D, V]` from hidden states to logits."""
  if config.tie_word_embeddings:
    return params["embed_tokens"]["embedding"].T
  return params["lm_head"]["kernel"]


def init_params(config: Config, key: jax.Array) -> Any:
  """Random parameters, boxed with their logical axes."""
  ids = jnp.zeros((1, 2), jnp.int32)
  layout = Layout(*(ids,) * 5)
  variables = Qwen3(config).init(key, ids, ids, layout, reach=1)
  return variables["params"]
