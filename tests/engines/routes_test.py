"""Routes of the embedded sampler, and what the trainer makes of them."""

import base64
import dataclasses
import functools

import flax.linen as nn
import httpx2
import jax
import numpy as np
import pytest

import experts
from pivotrl_jax import errors
from pivotrl_jax.data import batches
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import step as step_lib
from tests.engines import conftest

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


def test_as_sglang_tells_them():
  # Three layers, the second without experts; 2 of 5 experts a token.
  told_in = endpoint.Experts(layers=3, sparse=(0, 2), each=2, count=5)
  routes = np.array([[[0, 1], [2, 3]], [[4, 0], [1, 2]]], np.int16)
  text = told_in.written(routes, before=1)
  assert np.frombuffer(base64.b64decode(text), "<i4").tolist() == (
    [-1] * 6 + [0, 1, -1, -1, 2, 3] + [4, 0, -1, -1, 1, 2]
  )
  np.testing.assert_array_equal(told_in.read(text, 2), routes)
  np.testing.assert_array_equal(told_in.read(text, 1), routes[1:])
  with pytest.raises(ValueError, match="of 3 tokens; expected 4"):
    told_in.read(text, 4)
  with pytest.raises(ValueError, match="others than 5 experts"):
    told_in.read(text, 3)
  with pytest.raises(ValueError, match="reshape"):
    dataclasses.replace(told_in, layers=4).read(text, 1)


@pytest.fixture(scope="module")
def policy(params, tmp_path_factory):
  """The policy as a directory, with the mini policy's tokenizer."""
  path = tmp_path_factory.mktemp("experts") / "policy"
  return experts.saved(path, times=6, num_hidden_layers=3, mlp_only_layers=[1])


def _engine(path, served, **knobs):
  config = conftest.config_of(path)
  config.engine.update({"name": "sglang", "urls": served.address} | knobs)
  config.train.replay_routes = True
  return policy_lib.engine(served.policy, config)


def test_servers_tell_them(policy, prompts):
  """Lists, and a row that is sampled slice by slice, as in this process."""
  config = conftest.config_of(policy)
  config.train.replay_routes = True
  inside = policy_lib.engine(policy_lib.load(policy), config)
  prompts = [p + 300 for p in prompts]
  want = inside.sample(prompts, SAMPLING, range(6))
  with conftest.serving(config) as served:
    for most in (6, 1):
      outside = _engine(policy, served, rows_per_request=most)
      got = outside.sample(prompts, SAMPLING, range(6))
      for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.routes, other.routes)
    body = {
      "input_ids": prompts[0].tolist(), "return_routed_experts": True,
      "routed_experts_start_len": 20,
      "sampling_params": {"max_new_tokens": 30, "ignore_eos": True},
    }  # fmt: skip
    reply = httpx2.post(f"{served.address}/generate", json=body, timeout=60)
    told_in = policy_lib.experts(served.policy, config)
    told = reply.json()["meta_info"]["routed_experts"]
    assert told_in.read(told, 30).shape == (30, 2, 2)
    with pytest.raises(ValueError, match="of 30 tokens"):
      told_in.read(told, 31)


def test_a_server_that_tells_none_is_one_line(policy):
  with conftest.serving(conftest.config_of(policy)) as served:
    with pytest.raises(errors.EngineError, match="tells no routes; .*replay"):
      _engine(policy, served)
    body = {"input_ids": [300], "return_routed_experts": True}
    reply = httpx2.post(f"{served.address}/generate", json=body, timeout=60)
    assert reply.status_code == 400 and "replay_routes" in reply.text
  assert "--enable-return-routed-experts" in endpoint.check_routes({}, "here")
