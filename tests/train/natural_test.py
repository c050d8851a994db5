"""Natural steps: laws, the exact step, and the same however it is spread."""

import functools

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pivotrl_jax.data import batches
from pivotrl_jax.losses import natural_gradient
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import natural
from pivotrl_jax.train import natural_log
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

# Few enough parameters to write their Fisher matrix down.
SMALL = qwen3.Config(24, 8, 8, 2, 2, 1, 4, tie_word_embeddings=True)
REWARDS = np.random.default_rng(1).integers(0, 2, (4, 4)).astype(np.float32)
MODEL = qwen3.Qwen3(SMALL)
KNOBS = {"model": MODEL, "chunk": 16, "temperature": 0.7}


def _rows(rewards, groups=4):
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 24, n).astype(np.int32) for n in (9, 5, 12, 7)]
  lengths = rng.integers(1, 6, 16)
  actions = [rng.integers(0, 24, n).astype(np.int32) for n in lengths]
  count = 4 * groups
  return batches.Rows(
    prompts=[p for p in prompts for _ in range(4)][:count],
    actions=actions[:count],
    weights=[np.ones(n, np.float32) for n in lengths][:count],
    advantages=(rewards - rewards.mean(1, keepdims=True)).reshape(-1)[:count],
    sampler_log_probs=[np.full(n, -4.0, np.float32) for n in lengths][:count],
  )


def _batch(rewards=REWARDS, **layout):
  """All rows, and those of two groups for the Fisher matrix."""
  return natural.NaturalBatch(
    batches.pack(_rows(rewards), **layout)[0],
    batches.pack(_rows(rewards, groups=2), **layout)[0],
  )


def _state():
  params = nn.unbox(qwen3.init_params(SMALL, jax.random.key(0)))
  # Wider than the 0.02 of the initializer: scores of some size.
  params = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, params)
  return state_lib.create(params, optax.identity())


def _log_probs_fn(model=MODEL):
  return functools.partial(
    step_lib.policy_log_probs, model, chunk=16, temperature=0.7
  )


def _step(model=MODEL, **options):
  return functools.partial(
    natural.train_step,
    loss_fn=functools.partial(
      step_lib.grpo_loss, log_probs_fn=_log_probs_fn(), clip_low=0.2,
      clip_high=0.2, kl="k3", kl_coef=0.0, loss_norm="token",
      importance_cap=0.0, importance_floor=0.0,
    ),
    **KNOBS | {"model": model},
    **{
      "learning_rate": 1.0, "damping": 0.1, "iterations": 6, "max_kl": 1e-3,
      "tries": 5,
    } | options,
  )  # fmt: skip


def _probe(model=MODEL):
  return functools.partial(
    natural.project, log_probs_fn=_log_probs_fn(model), seed=3, directions=8
  )


def _norms(rows, places, rewards=REWARDS):
  found = np.asarray(rows["projections"]).reshape(-1, 8)[places]
  return natural_log.group_norms(
    found.reshape(*rewards.shape, 8), rewards, damping=1.0, estimator="grpo"
  )


def _flat(tree):
  return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def _both(state, batch, axis_name=None):
  """A measurement and a step, in one program."""
  state, _, rows = _probe()(state, batch.rows)
  state, metrics, _ = _step()(state, batch, axis_name=axis_name)
  return state, metrics, rows


def _spread(wrap, **layout):
  """How far a step moves, its metrics, and norms; `wrap(_both)` takes it."""
  run, state = wrap(_both)
  before = jax.device_get(state.params)
  after, metrics, rows = run(state, _batch(**layout))
  moved = jax.tree.map(jnp.subtract, jax.device_get(after.params), before)
  _, places = batches.pack(_rows(REWARDS), **layout)
  return moved, metrics, _norms(rows, places)


@functools.cache
def _reference():
  return _spread(lambda step: (jax.jit(step), _state()))


def _on_mesh(model_parallel):
  mesh = parallel.mesh(model_parallel)
  return lambda step: parallel.sharded(step, _state(), SMALL, mesh)


@pytest.mark.parametrize(
  "wrap, layout",
  [
    (lambda s: (jax.jit(s), _state()), {"micro_batches": 3}),
    (lambda s: (parallel.pmapped(s), _state()), {"multiple_of": 8}),
    (_on_mesh(1), {"multiple_of": 8}),
    (_on_mesh(2), {"multiple_of": 8}),
  ],
  ids=["3 micro-batches", "pmap", "8 x 1", "4 x 2"],
)
def test_one_step_however_it_is_spread(wrap, layout):
  assert jax.device_count() == 8
  want = _reference()
  assert float(optax.tree.norm(want[0])) > 0.01
  chex.assert_trees_all_close(
    _spread(wrap, **layout), want, atol=1e-5, rtol=1e-4
  )


def test_whatever_computes_attention():
  model = qwen3.Qwen3(SMALL, attention="pallas")
  state, batch = _state(), _batch()
  after, _, _ = jax.jit(_step(model))(state, batch)
  moved = jax.tree.map(jnp.subtract, after.params, state.params)
  chex.assert_trees_all_close(moved, _reference()[0], atol=1e-5, rtol=1e-4)


def test_the_fisher_matrix_is_the_hessian_of_the_measured_kl():
  params, batch = _state().params, _batch().fisher
  knobs = KNOBS | {"model": qwen3.Qwen3(SMALL, attention="dense")}
  vector = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  micro = jax.tree.map(lambda x: x[0], batch)

  def kl(after):
    found = natural_gradient.token_kl(
      *(
        step_lib.policy_outputs(knobs["model"], p, micro)[:2]
        for p in (params, after)
      ),
      chunk=16,
      temperature=0.7,
    )
    weights = step_lib.token_weights(micro)
    return (found * weights).sum() / weights.sum()

  assert len(batch.mask) == 1
  want = jax.jvp(jax.grad(kl), (params,), (vector,))[1]
  got = natural._fisher_product(params, batch, vector, **KNOBS, axis_name=None)
  size = float(optax.tree.norm(want))
  chex.assert_trees_all_close(got, want, atol=1e-4 * size)
  measured = natural.mean_kl(
    params, jax.tree.map(lambda p, v: p + 1e-2 * v, params, vector), batch,
    **KNOBS,
  )  # fmt: skip
  # The KL of a small step is half its curvature.
  half = 0.5e-4 * float(optax.tree.vdot(vector, got))
  assert float(measured) == pytest.approx(half, rel=0.1)


def test_the_step_solves_the_damped_equations():
  state, batch = _state(), _batch()
  after, metrics, _ = jax.jit(
    _step(iterations=200, damping=0.3, max_kl=10.0, learning_rate=1e-2)
  )(state, batch)
  knobs = KNOBS | {"axis_name": None}
  leaves, treedef = jax.tree.flatten(state.params)
  ends = np.cumsum([x.size for x in leaves])

  def fisher(v):
    parts = jnp.split(v, ends[:-1])
    tree = treedef.unflatten(
      [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
    )
    return _flat(
      natural._fisher_product(state.params, batch.fisher, tree, **knobs)
    )

  matrix = np.asarray(jax.lax.map(jax.jit(fisher), jnp.eye(ends[-1])))
  grads, _, _ = step_lib.gradients(
    state.params, batch.rows, loss_fn=_step().keywords["loss_fn"]
  )
  g = np.asarray(_flat(grads), np.float64)
  ridge = 0.3 * (g @ matrix @ g) / (g @ g)
  want = np.linalg.solve(matrix + ridge * np.eye(len(g)), g)
  moved = _flat(jax.tree.map(jnp.subtract, after.params, state.params))
  np.testing.assert_allclose(
    moved, -1e-2 * want, atol=2e-3 * np.abs(1e-2 * want).max()
  )
  np.testing.assert_allclose(
    metrics["natural_norm"], np.sqrt(g @ want), rtol=1e-3
  )


def test_groups_without_variance_do_not_move_a_bit():
  state = _state()
  alike = np.repeat(REWARDS[:, :1], 4, axis=1)
  after, metrics, _ = jax.jit(_step())(state, _batch(alike))
  chex.assert_trees_all_equal(after.params, state.params)
  for name in ("update_norm", "natural_norm", "natural_kl_measured"):
    assert float(metrics[name]) == 0.0


def test_the_measured_kl_stays_in_the_trust_region():
  # A Fisher matrix with next to no damping and one CG step knows little of
  # the curvature of the other groups: the model's KL is too small.
  state = _state()
  step = jax.jit(_step(damping=1e-3, max_kl=0.05, learning_rate=1e3))
  after, metrics, _ = step(state, _batch())
  kl = natural.mean_kl(state.params, after.params, _batch().rows, **KNOBS)
  assert 0 < float(kl) <= 0.05
  np.testing.assert_allclose(metrics["natural_kl_measured"], kl, rtol=1e-3)
  assert float(metrics["natural_share"]) < 1.0
  # Not allowed a shorter step, it takes none.
  step = jax.jit(_step(damping=1e-3, max_kl=0.05, learning_rate=1e3, tries=0))
  after, metrics, _ = step(state, _batch())
  chex.assert_trees_all_equal(after.params, state.params)
  assert float(metrics["natural_share"]) == 0.0


def _scores(state, batch):
  """`[N, P]` exact scores of a batch of one micro-batch, row after row."""
  micro = jax.tree.map(lambda x: x[0], batch)
  fn = _log_probs_fn()

  def log_probs(params):
    found = jnp.where(micro.mask > 0, fn(params, micro)[0], 0.0)
    return found.sum(-1).reshape(-1)

  jacobian = jax.jacrev(log_probs)(state.params)
  return np.concatenate(
    [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(jacobian)], 1
  )


def test_logged_norms_are_near_the_exact_ones():
  state = _state()
  batch, places = batches.pack(_rows(REWARDS))
  scores = _scores(state, batch)[places].reshape(4, 4, -1)
  exact = []
  for psi, rewards in zip(scores, REWARDS, strict=True):
    gram = psi @ psi.T
    adv = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    # N damping = tr(K) / N at natural_damping = 1.
    ridge = np.trace(gram) / 4 * np.eye(4)
    exact.append(np.sqrt(adv @ gram @ np.linalg.solve(gram + ridge, adv) / 4))
  found = []
  probe = jax.jit(_probe())
  for index in range(32):
    rows = probe(state.replace(step=jnp.int32(index)), batch)[2]
    found.append(_norms(rows, places)["norm"])
  found = np.array(found)
  # From 8 directions a group's norm spreads by a tenth; no bias is left.
  assert found.std(0).max() < 0.15
  error = found.mean(0) - exact
  assert np.abs(error).max() < 3 * found.std(0).max() / np.sqrt(32)


def test_the_trap_of_fewer_rows_than_parameters():
  """Paper, 3.4 item 7: rows of one's own give rms(A) whatever they are."""
  state = _state()
  batch, places = batches.pack(_rows(REWARDS))
  scores = _scores(state, batch)[places]
  noise = np.random.default_rng(5).normal(size=scores.shape)
  adv = np.random.default_rng(6).normal(size=16)
  rms = np.sqrt((adv**2).mean())

  def norm(psi, fisher):
    g = psi.T @ adv / 16
    direction = np.linalg.lstsq(fisher, g, rcond=1e-9)[0]
    return np.sqrt(g @ direction), psi @ direction

  for psi in (scores.astype(np.float64), noise):
    got, along = norm(psi, psi.T @ psi / 16)
    # Whatever the scores are, and every row learns its own advantage by heart.
    np.testing.assert_allclose(got, rms, rtol=1e-3)
    np.testing.assert_allclose(along, adv, atol=1e-2)
  # The Fisher matrix of the step has other rows: not so.
  fvp = functools.partial(
    natural._fisher_product, state.params, batch, **KNOBS, axis_name=None
  )
  unflat = jax.flatten_util.ravel_pytree(state.params)[1]
  matrix = np.asarray(
    jax.lax.map(lambda v: _flat(fvp(unflat(v))), jnp.eye(scores.shape[1]))
  )
  _, along = norm(scores.astype(np.float64), matrix.astype(np.float64))
  assert np.abs(along - adv).max() > 0.3
