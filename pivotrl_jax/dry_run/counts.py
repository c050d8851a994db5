"""Work and memory of a step, and of rollouts, counted by hand.

A product of `[M, K]` and `[K, N]` is 2 M K N FLOPs. Nothing here knows a
compiler: what one says is put beside it.
"""

import dataclasses

from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a step trains on.

  Attributes:
    pivots: prompts of a step, which share nothing here.
    group: actions of each.
    prompt: tokens of a prompt but for its last, the first that actions read.
    action: tokens of an action.
  """

  pivots: int
  group: int
  prompt: int
  action: int

  @property
  def branch(self) -> int:
    """Action tokens of a prompt."""
    return self.group * self.action


def attention_matrices(c: qwen3.Config) -> tuple[int, int]:
  """Parameters of a layer's query and output, and of its key and value."""
  heads, kv = c.num_attention_heads, c.num_key_value_heads
  width = c.hidden_size * c.head_dim
  return 2 * width * heads, 2 * width * kv


def feed_forward(c: qwen3.Config, layer: int, *, active: bool) -> int:
  """Parameters of a layer's MLP, or of its router and experts: of all, or of
  those that compute a token.
  """
  if layer not in c.sparse_layers:
    return 3 * c.hidden_size * c.intermediate_size
  count = c.num_experts_per_tok if active else c.num_experts
  expert = 3 * c.hidden_size * c.moe_intermediate_size
  return c.hidden_size * c.num_experts + count * expert


def parameters(c: qwen3.Config, *, active: bool = False) -> int:
  """Of the policy: all, or those that a token meets (its embedding's row
  apart).
  """
  norms = 2 * c.hidden_size + 2 * c.head_dim
  total = c.vocab_size * c.hidden_size + c.hidden_size
  if not c.tie_word_embeddings and not active:
    total += c.vocab_size * c.hidden_size
  return total + sum(
    sum(attention_matrices(c)) + feed_forward(c, i, active=active) + norms
    for i in range(c.num_hidden_layers)
  )


def forward(c: qwen3.Config, s: Sizes) -> dict[str, float]:
  """FLOPs of a forward pass of one prompt and its actions, by part.

  The last layer of a prompt is keys and values alone, and prompts have no
  logits (models/qwen3.py).

  Returns:
    "projections" (of attention, MLPs and routers), "experts", "attention",
    "logits".
  """
  own, kv = attention_matrices(c)
  trie, branch, layers = s.prompt, s.branch, range(c.num_hidden_layers)
  projections = experts = 0.0
  for i in layers:
    whole = trie * (i < c.num_hidden_layers - 1) + branch
    feed = feed_forward(c, i, active=True)
    if i in c.sparse_layers:
      routed = c.hidden_size * c.num_experts
      experts += 2 * (feed - routed) * whole
      feed = routed
    projections += 2 * (kv * (trie + branch) + (own + feed) * whole)
  pairs = (len(layers) - 1) * trie * (trie + 1) / 2
  pairs += len(layers) * branch * (trie + (s.action + 1) / 2)
  return {
    "projections": projections,
    "experts": experts,
    "attention": 4.0 * c.num_attention_heads * c.head_dim * pairs,
    "logits": 2.0 * c.hidden_size * c.vocab_size * branch,
  }


def step(c: qwen3.Config, s: Sizes, *, remat: bool) -> dict[str, float]:
  """FLOPs of a whole step: what the model needs (a backward pass is two
  forward ones), and what is executed.

  Logits are formed again in the backward pass, and so are the scores of
  attention (a fifth product beside four); `remat` runs layers again.
  """
  once = {name: s.pivots * x for name, x in forward(c, s).items()}
  layers = once["projections"] + once["experts"] + once["attention"]
  model = 3 * (layers + once["logits"])
  again = once["logits"] + 0.5 * once["attention"] + remat * layers
  return once | {"model": model, "executed": model + again}


def activations(
  c: qwen3.Config, s: Sizes, *, remat: bool, logits_chunk: int, width: int = 2
) -> dict[str, float]:
  """Bytes that a device's backward pass of one prompt finds, an estimate.

  Args:
    c: the policy.
    s: one prompt a device.
    remat: only the layers' inputs are kept; else what their products read.
    logits_chunk: rows of logits at a time.
    width: bytes of an activation.

  Returns:
    "kept" of all layers, "working" of one layer at most, "logits".
  """
  heads = c.num_attention_heads * c.head_dim
  kv = c.num_key_value_heads * c.head_dim
  wide = 0 if c.sparse_layers else 3 * c.intermediate_size
  layer = width * (4 * c.hidden_size + 3 * heads + 2 * kv + wide)
  # A row for each expert of a token: in, gate, up, product, out.
  row = width * (2 * c.hidden_size + 3 * c.moe_intermediate_size)

  def held(tokens, most):
    """Of a layer; of experts no more than `most` rows."""
    return layer * tokens + row * min(tokens * c.num_experts_per_tok, most)

  def stays(tokens):
    if remat:
      return width * c.hidden_size * tokens
    # Experts that go by parts are computed again.
    by_parts = tokens * c.num_experts_per_tok > moe.ROWS
    return held(tokens, 0 if by_parts else moe.ROWS)

  return {
    "kept": float(
      c.num_hidden_layers * (stays(s.prompt) + stays(s.branch))
    ),
    # Values and their cotangents, of prompts or of actions.
    "working": 2.0 * held(max(s.prompt, s.branch), moe.ROWS),
    "logits": 2.0 * 4 * logits_chunk * c.vocab_size,
  }


def traffic(
  c: qwen3.Config, s: Sizes, *, micro_batches: float, devices: int,
  shards: int, remat: bool,
) -> float:  # fmt: skip
  """Bytes that a device reads and writes in a step, at least.

  Weights once a pass and micro-batch in bfloat16, gathered; gradients,
  masters and moments of its shard once; activations into and out of products.
  """
  passes = 3 + remat
  total = parameters(c)
  weights = 2 * 2 * passes * micro_batches * total
  optimizer = (4 * 2 * 3 + 4 * 2 * micro_batches) * total / shards
  tokens = s.pivots * (s.prompt + s.branch) / devices
  layer = activations(
    c, Sizes(1, 1, 1, 0), remat=False, logits_chunk=0
  )["kept"]  # fmt: skip
  return weights + optimizer + 2 * passes * tokens * layer


def rollouts(
  c: qwen3.Config, *, turns: float, contexts: float, prompt: float,
  seen: float, action: float, branches: float,
) -> dict[str, float]:  # fmt: skip
  """What sampling takes, in tokens, FLOPs and bytes of keys and values read.

  Args:
    c: the policy.
    turns: actions sampled.
    contexts: prompts that are prefilled for them, each for itself.
    prompt: tokens of one.
    seen: mean tokens before an action.
    action: tokens of an action.
    branches: actions that read one copy of their prompt's keys together.
  """
  prefilled, sampled = contexts * prompt, turns * action
  active = 2 * parameters(c, active=True)
  wide = 4.0 * c.num_attention_heads * c.head_dim * c.num_hidden_layers
  prefill = active * prefilled + wide * prefilled * prompt / 2
  decode = active * sampled + wide * sampled * (seen + action / 2)
  key = 2 * 2 * c.num_key_value_heads * c.head_dim * c.num_hidden_layers
  read = key * sampled * (seen / branches + action / 2)
  return {
    "turns": turns,
    "prefilled": prefilled,
    "sampled": sampled,
    "flops": prefill + decode,
    "prefill_flops": prefill,
    "read": read,
  }
