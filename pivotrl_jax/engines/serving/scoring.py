"""Log-probs of given text: what `echo` and `top_logprobs` ask for."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.models import qwen3

MOST = 20  # Likeliest tokens that are told of a place.
_SHORTEST = 64
_BLOCK = 64  # Places projected to the vocabulary at a time.


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a policy thinks of a text of T tokens.

  Attributes:
    log_probs: `[T]` of each token after those before it; NaN at the first.
    top_ids: `[T, 20]` the likeliest tokens there, likeliest first.
    top_log_probs: `[T, 20]`.
  """

  log_probs: np.ndarray
  top_ids: np.ndarray
  top_log_probs: np.ndarray


Score = Callable[[Any, Sequence[np.ndarray], float], list[Scores]]


def scorer(config: qwen3.Config, *, dtype: Any, attention: str) -> Score:
  """`(params, texts, temperature) -> Scores of each`; lengths are padded."""
  model = qwen3.Qwen3(config, dtype=dtype, attention=attention)
  forward = jax.jit(functools.partial(_forward, model))

  def score(params, texts, temperature=1.0):
    found = []
    for text in texts:
      size = max(_SHORTEST, 1 << (len(text) - 1).bit_length())
      padded = np.zeros(size, np.int32)
      padded[: len(text)] = text
      scale = jnp.float32(temperature or 1.0)
      out = jax.device_get(forward(params, padded, scale))
      # Outputs predict the next token: moved on by one.
      found.append(Scores(*(_after_first(x, len(text)) for x in out)))
    return found

  return score


def _after_first(x, length):
  first = np.full_like(x[:1], np.nan if x.dtype.kind == "f" else 0)
  return np.concatenate([first, x[: length - 1]])


def _forward(model, params, ids, temperature):
  """Of each place: the next token's log-prob, and the likeliest tokens."""
  size = len(ids)
  nothing = jnp.zeros((1, 1), jnp.int32)  # No trie: all is one branch.
  hidden = model.apply(
      {"params": params}, nothing, ids[None],
      qwen3.Layout(
          ends=nothing, depths=nothing,
          past=jnp.full((1, size), -1), branch_ends=jnp.full((1, size), size),
          branch_depths=jnp.arange(size)[None],
      ),
      reach=size - 1,
  )[0]  # fmt: skip
  unembed = qwen3.unembedding(params, model.config)
  following = jnp.roll(ids, -1)

  def block(part):
    hidden, token = part
    logits = (hidden @ unembed).astype(jnp.float32) / temperature
    log_probs = jax.nn.log_softmax(logits)
    top, top_ids = jax.lax.top_k(log_probs, MOST)
    return jnp.take_along_axis(log_probs, token[:, None], 1)[:, 0], top_ids, top

  blocks = jax.tree.map(
    lambda x: x.reshape(-1, _BLOCK, *x.shape[1:]), (hidden, following)
  )
  found = jax.lax.map(block, blocks)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
