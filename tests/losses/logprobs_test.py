"""Chunked log-probs are the plain ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax.losses import logprobs


def test_golden():
  # Logits (0, log 3): probabilities 1/4, 3/4; entropy log 4 - 3/4 log 3.
  log_probs, entropy = logprobs.token_log_probs(
      jnp.array([[1.0], [1.0]]), jnp.array([[0.0, np.log(3)]]),
      jnp.array([0, 1]), chunk=1,
  )  # fmt: skip
  np.testing.assert_allclose(log_probs, np.log([0.25, 0.75]), rtol=1e-6)
  np.testing.assert_allclose(
    entropy, [np.log(4) - 0.75 * np.log(3)] * 2, rtol=1e-6
  )


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_chunks_change_nothing(chunk):
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (7, 4))
  unembed = jax.random.normal(keys[1], (4, 11))
  targets = jax.random.randint(keys[2], (7,), 0, 11)

  def plain(hidden, unembed):
    scores = jax.nn.log_softmax(hidden @ unembed / 0.7)
    return jnp.take_along_axis(scores, targets[:, None], 1).sum()

  def chunked(hidden, unembed):
    return logprobs.token_log_probs(
      hidden, unembed, targets, chunk=chunk, temperature=0.7
    )[0].sum()

  chex.assert_trees_all_close(
    jax.value_and_grad(plain, (0, 1))(hidden, unembed),
    jax.value_and_grad(chunked, (0, 1))(hidden, unembed),
    rtol=1e-5,
    atol=1e-6,
  )


def test_sft_loss_ignores_nan_padding():
  loss, sums = logprobs.sft_loss(
    jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([1.0, 0.5, 0.0])
  )
  # 1 * 1 + 0.5 * 2.
  assert float(loss) == 2.0
  assert float(sums["weight"]) == 1.5
