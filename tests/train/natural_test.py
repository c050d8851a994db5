"""Natural steps: laws, the exact step, and the same however it is spread."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
from jax.flatten_util import ravel_pytree as ravel
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import random_rows
from pivotrl_jax.data import batches
from pivotrl_jax.losses import natural_gradient
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import natural
from pivotrl_jax.train import natural_log
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

# Few enough parameters to write their Fisher matrix down.
SMALL = qwen3.Config(24, 8, 8, 1, 2, 1, 4, tie_word_embeddings=True)
REWARDS = np.random.default_rng(1).integers(0, 2, (4, 4)).astype(np.float32)
# Compiles fastest; what trains is held to it below.
MODEL = qwen3.Qwen3(SMALL, attention="dense")
KNOBS = {"model": MODEL, "chunk": 16, "temperature": 0.7}


def _rows(rewards, groups=4):
  found = random_rows.drawn(
    np.random.default_rng(0), 24, (9, 5, 12, 7),
    (rewards - rewards.mean(1, keepdims=True)).reshape(-1),
  )  # fmt: skip
  kept = {
    name: value[: 4 * groups]
    for name, value in vars(found).items()
    if value is not None
  }
  return dataclasses.replace(found, **kept)


def _batch(rewards=REWARDS, **layout):
  """All rows, and those of two groups for the Fisher matrix."""
  return natural.NaturalBatch(
    batches.pack(_rows(rewards), **layout)[0],
    batches.pack(_rows(rewards, groups=2), **layout)[0],
  )


@functools.cache
def _params():
  params = nn.unbox(qwen3.init_params(SMALL, jax.random.key(0)))
  # Wider than the 0.02 of the initializer: scores of some size.
  return jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, params)


def _state():
  # Copies: a sharded step is given what it takes.
  return state_lib.create(jax.tree.map(jnp.array, _params()), optax.identity())


def _log_probs_fn(model):
  return functools.partial(
    step_lib.policy_log_probs, model, chunk=16, temperature=0.7
  )


def _loss_fn(model):
  return functools.partial(
      step_lib.grpo_loss, log_probs_fn=_log_probs_fn(model), clip_low=0.2,
      clip_high=0.2, kl="k3", kl_coef=0.0, loss_norm="token",
      importance_cap=0.0, importance_floor=0.0,
  )  # fmt: skip


DEFAULTS = {
  "learning_rate": 1.0,
  "damping": 0.1,
  "iterations": 6,
  "max_kl": 1e-3,
  "tries": 5,
}


def _both(state, batch, axis_name=None, *, model, knobs):
  """A measurement and a step, in one program."""
  state, _, rows = natural.project(
    state, batch.rows, log_probs_fn=_log_probs_fn(model), seed=3, directions=8
  )
  state, metrics, _ = natural.train_step(
    state, batch, loss_fn=_loss_fn(model), **KNOBS | {"model": model}, **knobs,
    axis_name=axis_name,
  )  # fmt: skip
  return state, metrics, rows


_jitted = jax.jit(
  lambda state, batch, knobs: _both(state, batch, model=MODEL, knobs=knobs)
)


def _run(state, batch, **options):
  """`_both` on one device; one program whatever the options."""
  return _jitted(state, batch, DEFAULTS | options)


_group_norms = jax.jit(
  functools.partial(natural_log.group_norms, damping=1.0, estimator="grpo")
)


def _norms(rows, places, rewards=REWARDS):
  found = np.asarray(rows["projections"]).reshape(-1, 8)[places]
  return _group_norms(found.reshape(*rewards.shape, 8), rewards)


def _flat(tree):
  return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def _moved(before, after):
  """What a step did to the parameters."""
  before, after = (jax.device_get(x.params) for x in (before, after))
  return jax.tree.map(np.subtract, after, before)


@functools.cache
def _reference():
  """Updates, metrics and norms of one device and one micro-batch."""
  state = _state()
  after, metrics, rows = _run(state, _batch())
  _, places = batches.pack(_rows(REWARDS))
  return _moved(state, after), metrics, _norms(rows, places)


def _on_mesh(tensor):
  return lambda step: parallel.sharded(
    step, _state(), SMALL, parallel.mesh(tensor=tensor)
  )


@pytest.mark.parametrize(
  "wrap, layout",
  [
    (lambda s: (jax.jit(s), _state()), {"micro_batches": 3}),
    (lambda s: (parallel.pmapped(s), _state()), {"multiple_of": 8}),
    (_on_mesh(2), {"multiple_of": 8}),
  ],
  ids=["accumulated", "pmap", "4 x 2"],
)
def test_one_step_however_it_is_spread(wrap, layout):
  assert jax.device_count() == 8
  run, state = wrap(functools.partial(_both, model=MODEL, knobs=DEFAULTS))
  after, metrics, rows = run(state, _batch(**layout))
  _, places = batches.pack(_rows(REWARDS), **layout)
  want = _reference()
  assert float(optax.tree.norm(want[0])) > 0.01
  chex.assert_trees_all_close(
    (_moved(_state(), after), metrics, _norms(rows, places)),
    want, atol=1e-5, rtol=1e-4,
  )  # fmt: skip


def test_the_fisher_matrix_is_the_hessian_of_the_measured_kl():
  params, batch = _state().params, _batch().fisher
  knobs = KNOBS | {"model": qwen3.Qwen3(SMALL, attention="xla")}
  vector = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  micro = jax.tree.map(lambda x: x[0], batch)

  def kl(after):
    found = natural_gradient.token_kl(
      *(step_lib.policy_outputs(MODEL, p, micro)[:2] for p in (params, after)),
      chunk=16,
      temperature=0.7,
    )
    weights = step_lib.token_weights(micro)
    return (found * weights).sum() / weights.sum()

  @jax.jit
  def products():
    ours = natural._fisher_product(
      params, batch, vector, **knobs, axis_name=None
    )
    far = jax.tree.map(lambda p, v: p + 3e-3 * v, params, vector)
    measured = natural.mean_kl(params, far, batch, **KNOBS)
    return jax.jvp(jax.grad(kl), (params,), (vector,))[1], ours, measured

  assert len(batch.mask) == 1
  want, got, measured = products()
  size = float(optax.tree.norm(want))
  chex.assert_trees_all_close(got, want, atol=1e-4 * size)
  # The KL of a small step is half its curvature.
  half = 0.5 * 3e-3**2 * float(optax.tree.vdot(vector, got))
  assert float(measured) == pytest.approx(half, rel=0.1)


@functools.cache
def _fisher(part):
  """`[P, P]` undamped, of "rows" or of "fisher"."""
  params = _state().params
  batch, unflat = getattr(_batch(), part), ravel(params)[1]

  @jax.jit
  def row(vector):
    return _flat(
      natural._fisher_product(
        params, batch, unflat(vector), **KNOBS, axis_name=None
      )
    )

  size = sum(x.size for x in jax.tree.leaves(params))
  return np.asarray(jax.lax.map(row, jnp.eye(size)), np.float64)


def test_the_step_solves_the_damped_equations():
  state, batch = _state(), _batch()
  after, metrics, _ = _run(
    state, batch, iterations=200, damping=0.3, max_kl=10.0, learning_rate=1e-2
  )
  grads, _, _ = jax.jit(
    functools.partial(step_lib.gradients, loss_fn=_loss_fn(MODEL))
  )(state.params, batch.rows)
  g, matrix = np.asarray(_flat(grads), np.float64), _fisher("fisher")
  ridge = 0.3 * (g @ matrix @ g) / (g @ g)
  want = np.linalg.solve(matrix + ridge * np.eye(len(g)), g)
  np.testing.assert_allclose(
    _flat(_moved(state, after)), -1e-2 * want,
    atol=2e-3 * np.abs(1e-2 * want).max(),
  )  # fmt: skip
  np.testing.assert_allclose(
    metrics["natural_norm"], np.sqrt(g @ want), rtol=1e-3
  )


def test_groups_without_variance_do_not_move_a_bit():
  state = _state()
  alike = np.repeat(REWARDS[:, :1], 4, axis=1)
  after, metrics, rows = _run(state, _batch(alike))
  chex.assert_trees_all_equal(after.params, state.params)
  for name in ("update_norm", "natural_norm", "natural_kl_measured"):
    assert float(metrics[name]) == 0.0
  _, places = batches.pack(_rows(alike))
  for found in _norms(rows, places, alike).values():
    np.testing.assert_array_equal(found, np.zeros(4))


def test_the_measured_kl_stays_in_the_trust_region():
  # The Fisher matrix is of half the groups and next to undamped: it knows
  # little of the curvature of the others, so that the KL passes its model's.
  state, far = _state(), {"damping": 1e-3, "max_kl": 0.05, "learning_rate": 1e3}
  after, metrics, _ = _run(state, _batch(), **far)
  assert 0 < float(metrics["natural_kl_measured"]) <= 0.05
  assert 0 < float(metrics["natural_share"]) < 1.0
  # Not allowed a shorter step, it takes none.
  after, metrics, _ = _run(state, _batch(), tries=0, **far)
  chex.assert_trees_all_equal(after.params, state.params)
  assert float(metrics["natural_share"]) == 0.0


def test_a_checkpoint_is_all_there_is(tmp_path):
  state, batch = _state(), _batch()
  first, _, _ = _run(state, batch)
  with checkpoints.Checkpoints(tmp_path, keep=1, policy="p") as saved:
    saved.save(1, first)
  with checkpoints.Checkpoints(tmp_path, keep=1, policy="p") as saved:
    step, resumed = saved.restore_latest(_state())
  assert step == 1
  chex.assert_trees_all_equal(
    _run(resumed, batch)[0].params, _run(first, batch)[0].params
  )


def _scores(state, batch):
  """`[M * B * N, P]` exact scores of every branch."""

  @jax.jit
  def log_probs(params):
    found = step_lib.score(_log_probs_fn(MODEL), params, batch)
    return jnp.where(batch.mask > 0, found, 0.0).sum(-1).reshape(-1)

  # Forward mode: the loop over micro-batches has no reverse one.
  jacobian = jax.jacfwd(log_probs)(state.params)
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
  for index in range(32):
    rows = _run(state.replace(step=jnp.int32(index)), _batch())[2]
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
  _, along = norm(scores.astype(np.float64), _fisher("rows"))
  assert np.abs(along - adv).max() > 0.3
