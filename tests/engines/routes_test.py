"""Routes of the embedded sampler, and what the trainer makes of them."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from pivotrl_jax.data import batches
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import step as step_lib

TINY = qwen3.Config(
  64, 16, 48, 3, 2, 1, 8, tie_word_embeddings=True, num_experts=5,
  num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
  mlp_only_layers=(1,),
)  # fmt: skip
SAMPLING = base.SamplingParams(max_tokens=9, stop_ids=tuple(range(6)))


@pytest.fixture(scope="module")
def params():
  boxed = qwen3.init_params(TINY, jax.random.key(0))
  # Wider than at the start of training, so that no two experts nearly tie.
  return jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, nn.unbox(boxed))


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(0)
  trunk = rng.integers(0, 64, 21).astype(np.int32)
  other = rng.integers(0, 64, 6).astype(np.int32)
  return [trunk, trunk, trunk[:9], trunk[:1], other, other]


@pytest.fixture(scope="module")
def completions(params, prompts):
  engine = jax_sampler.JaxSampler(TINY, chunk=4, routes=True)
  engine.load(params, "0")
  return engine.sample(prompts, SAMPLING, range(len(prompts)))


@pytest.fixture(scope="module")
def score(params):
  log_probs = functools.partial(
    step_lib.policy_log_probs, qwen3.Qwen3(TINY), chunk=64
  )

  @jax.jit
  def run(batch):
    return log_probs(params, jax.tree.map(lambda x: x[0], batch))

  return run


def _batch(prompts, completions, change=lambda x: x):
  return batches.pack(
    batches.Rows(
      prompts=prompts,
      actions=[c.ids for c in completions],
      weights=[np.ones(len(c.ids), np.float32) for c in completions],
      advantages=np.ones(len(completions), np.float32),
      sampler_log_probs=[c.log_probs for c in completions],
      routes=[change(c.routes) for c in completions],
    ),
    batch_tokens=64,
  )


def test_replayed_routes_are_the_trainers_own(completions, prompts, score):
  assert len({len(c.ids) for c in completions}) > 1
  for c in completions:
    assert c.routes.shape == (len(c.ids), 2, 2)
    assert (c.routes >= 0).all() and (c.routes < 5).all()
  batch, places = _batch(prompts, completions)
  log_probs, _, router = score(batch)
  log_probs = log_probs.reshape(-1, log_probs.shape[-1])[places]
  for row, c in zip(log_probs, completions, strict=True):
    np.testing.assert_allclose(row[: len(c.ids)], c.log_probs, atol=1e-4)
  # Two experts a token, in each of two layers.
  assert (
    router["given"].tolist() == [2 * sum(len(c.ids) for c in completions)] * 2
  )
  assert moe.statistics(router)["router/disagreement"] == 0.0


def test_other_routes_change_what_is_computed(completions, prompts, score):
  want, _, _ = score(_batch(prompts, completions)[0])
  batch, _ = _batch(prompts, completions, lambda routes: (routes + 1) % 5)
  got, _, router = score(batch)
  assert np.abs(got - want).max() > 0.01
  assert moe.statistics(router)["router/disagreement"] > 0.3


def test_a_row_does_not_depend_on_its_batch(params, completions, prompts):
  engine = jax_sampler.JaxSampler(TINY, chunk=4, routes=True)
  engine.load(params, "0")
  (alone,) = engine.sample(prompts[2:3], SAMPLING, [2])
  np.testing.assert_array_equal(alone.ids, completions[2].ids)
  np.testing.assert_array_equal(alone.routes, completions[2].routes)
