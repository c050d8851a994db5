"""The paper's vectors (3.4 item 7), tabular theory, and laws."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pivotrl_jax.losses import natural_gradient

# Rows are scores: log-probs are linear in the two parameters.
SCORES = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 2.0]])
ADVANTAGES = jnp.array([1.0, -1.0, 0.5, -0.5])
# A tree of two leaves, so that nothing relies on a flat vector.
PARAMS = {"a": jnp.zeros(()), "b": jnp.zeros((1,))}


def log_probs(params):
  return SCORES @ jnp.concatenate([params["a"][None], params["b"]])


def tree(vector):
  return {"a": vector[0], "b": vector[1:]}


def flat(params):
  return jnp.concatenate([params["a"][None], params["b"]])


def empirical(log_prob_fn, params, vector, weights=None):
  return natural_gradient.fisher_vector_product(
    log_prob_fn, params, vector,
    curvature=functools.partial(
      natural_gradient.row_curvature, weights=weights
    ),
  )  # fmt: skip


def fvp(vector):
  return empirical(log_probs, PARAMS, vector)


# g = Psi^T A / 4 = (1 + .5 + .5, -1 + .5 - 1) / 4.
GRADIENT = tree(jnp.array([0.5, -0.375]))


class FisherTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_product(self):
    # Psi^T Psi = [[3, -1], [-1, 6]]; times (2, 1) over 4: (5/4, 4/4).
    got = self.variant(fvp)(tree(jnp.array([2.0, 1.0])))
    np.testing.assert_allclose(flat(got), [1.25, 1.0], rtol=1e-6)

  def test_weights_are_counts(self):
    # The second row twice, the last not at all, though its score is NaN:
    # Psi^T Psi = diag(1, 0) + 2 diag(0, 1) + ones = [[2, 1], [1, 3]], over 4.
    scores = SCORES.at[3].set(jnp.nan)
    mask = jnp.array([1.0, 2.0, 1.0, 0.0])

    def masked(params):
      live = jnp.where(mask[:, None] > 0, scores, 0.0) @ flat(params)
      return jnp.where(mask > 0, live, jnp.nan)

    got = empirical(masked, PARAMS, tree(jnp.array([1.0, 1.0])), mask)
    np.testing.assert_allclose(flat(got), [0.75, 1.0], rtol=1e-6)

  def test_softmax_fisher_is_diag_minus_outer(self):
    # All actions of a softmax, weighted by their probabilities, give
    # F = diag(pi) - pi pi^T exactly.
    logits = jnp.array([0.3, -1.0, 0.7, 0.0])
    policy = jax.nn.softmax(logits)
    vector = jnp.array([1.0, 2.0, -1.0, 0.5])
    got = empirical(jax.nn.log_softmax, logits, vector, policy)
    want = policy * vector - policy * (policy @ vector)
    np.testing.assert_allclose(got, want, atol=1e-6)


class DirectionTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    ("undamped", 0.0, [0.617647, -0.147059], 0.603300),
    ("damped", 0.1, [0.544316, -0.149326], 0.572848),
  )
  def test_paper(self, damping, want, norm):
    run = self.variant(
      lambda g: natural_gradient.natural_direction(
        g, fvp, damping=damping, iterations=5
      )
    )
    direction, found = run(GRADIENT)
    got = found["norm"]
    np.testing.assert_allclose(flat(direction), want, atol=1e-5)
    np.testing.assert_allclose(got, norm, atol=1e-6)
    rms = jnp.sqrt((ADVANTAGES**2).mean())
    np.testing.assert_allclose(rms, 0.790569, atol=1e-6)
    np.testing.assert_allclose(
      natural_gradient.share_captured(got, rms), norm / 0.790569, atol=1e-5
    )

  def test_theorem_3_2(self):
    # pi = (.5, .3, .2), r = (1, 0, 0): the natural gradient of E[r] is r - mu
    # up to a constant, its norm the std sqrt(.5 * .5).
    policy = jnp.array([0.5, 0.3, 0.2])
    logits = jnp.log(policy)
    rewards = jnp.array([1.0, 0.0, 0.0])
    grads = jax.grad(lambda z: jax.nn.softmax(z) @ rewards)(logits)

    def product(vector):
      return empirical(jax.nn.log_softmax, logits, vector, policy)

    direction, found = natural_gradient.natural_direction(
      grads, product, damping=0.0, iterations=3
    )
    np.testing.assert_allclose(found["norm"], 0.5, atol=1e-5)
    np.testing.assert_allclose(
      direction - direction @ policy, rewards - 0.5, atol=1e-4
    )

  def test_relative_damping(self):
    # F g = (3 * .5 + .375, -.5 - 6 * .375) / 4 = (.46875, -.6875), so that
    # g^T F g / g^T g = (.234375 + .257813) / .390625 = 1.26: a share .1 / 1.26
    # is the paper's .1.
    direction, found = natural_gradient.natural_direction(
      GRADIENT, fvp, damping=0.1 / 1.26, iterations=5, relative=True
    )
    np.testing.assert_allclose(found["damping"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(
      flat(direction), [0.544316, -0.149326], atol=1e-5
    )


class BackTrackTest(chex.TestCase):
  @parameterized.named_parameters(
    # KL of share s is 4 s^2: inside at 1; at .9 * sqrt(1 / 4) = .45, KL .81.
    ("inside", 4.0, 5, 1.0, 4.0),
    ("shortened", 1.0, 5, 0.45, 0.81),
    ("no try left", 1.0, 0, 0.0, 0.0),
  )
  def test_golden(self, max_kl, tries, share, kl):
    step, found = jax.jit(
      lambda u: natural_gradient.back_track(
        u, lambda x: (x**2).sum(), max_kl=max_kl, tries=tries
      )
    )(jnp.array([2.0, 0.0]))
    np.testing.assert_allclose(step, [2.0 * share, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["natural_share"], share, rtol=1e-6)
    np.testing.assert_allclose(found["natural_kl_measured"], kl, rtol=1e-6)

  def test_what_is_not_finite_is_outside(self):
    # NaN at a length over .05: two tries, each a tenth.
    step, found = natural_gradient.back_track(
      jnp.ones(1),
      lambda x: jnp.where(x[0] > 0.05, jnp.nan, x[0]),
      max_kl=1.0,
      tries=2,
    )
    np.testing.assert_allclose(step, [0.01], rtol=1e-6)
    np.testing.assert_allclose(found["natural_share"], 0.01, rtol=1e-6)


class StepTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_trust_region_binds(self):
    run = self.variant(
      lambda g: natural_gradient.natural_step(
        g, fvp, damping=0.1, max_kl=0.02, iterations=5
      )
    )
    updates, metrics = run(GRADIENT)
    # sqrt(2 * .02) / .572848 = .349133 times the damped direction, downhill.
    np.testing.assert_allclose(flat(updates), [-0.190038, 0.052135], atol=1e-5)
    np.testing.assert_allclose(metrics["natural_scale"], 0.349133, atol=1e-5)
    # Undamped step^T F step / 2 with F = [[3, -1], [-1, 6]] / 4:
    # (3 * .190038^2 + 2 * .190038 * .052135 + 6 * .052135^2) / 8 = .018058.
    np.testing.assert_allclose(metrics["natural_kl"], 0.018058, atol=1e-5)

  def test_small_gradient_is_not_blown_up(self):
    small = jax.tree.map(lambda x: 1e-3 * x, GRADIENT)
    updates, metrics = natural_gradient.natural_step(
      small, fvp, damping=0.1, max_kl=0.02, iterations=5, learning_rate=0.5
    )
    # Half the direction: nothing is shortened, nothing lengthened.
    np.testing.assert_allclose(
      flat(updates), [-0.272158e-3, 0.074663e-3], atol=1e-8
    )
    np.testing.assert_allclose(metrics["natural_scale"], 0.5)

  def test_no_gradient_no_step(self):
    zeros = jax.tree.map(jnp.zeros_like, GRADIENT)
    updates, metrics = natural_gradient.natural_step(
      zeros, fvp, damping=0.1, max_kl=0.02, iterations=5
    )
    np.testing.assert_array_equal(flat(updates), [0.0, 0.0])
    self.assertEqual(float(metrics["natural_norm"]), 0.0)
    self.assertEqual(float(metrics["natural_kl"]), 0.0)

  def test_real_kl_is_near_the_model(self):
    # A softmax of 8 actions, its exact Fisher: the step's true KL is the
    # trust region's to second order.
    keys = jax.random.split(jax.random.key(3), 2)
    logits = jax.random.normal(keys[0], (8,))
    rewards = jax.random.normal(keys[1], (8,))
    policy = jax.nn.softmax(logits)

    def product(vector):
      return empirical(jax.nn.log_softmax, logits, vector, policy)

    loss = lambda z: -jax.nn.softmax(z) @ rewards
    updates, metrics = natural_gradient.natural_step(
      jax.grad(loss)(logits), product, damping=1e-3, max_kl=1e-3,
      iterations=20,
    )  # fmt: skip
    after = optax.apply_updates(logits, updates)
    kl = policy @ (jax.nn.log_softmax(logits) - jax.nn.log_softmax(after))
    np.testing.assert_allclose(kl, metrics["natural_kl"], rtol=0.05)
    self.assertLessEqual(float(metrics["natural_kl"]), 1e-3)
    # First order: loss falls by the norm times the step's length.
    np.testing.assert_allclose(
      loss(logits) - loss(after),
      metrics["natural_norm"] ** 2 * metrics["natural_scale"],
      rtol=0.05,
    )


class GramTest(chex.TestCase):
  def projections(self, rows=4, directions=4096):
    return natural_gradient.score_projections(
      lambda p: log_probs(p)[:rows], PARAMS, jax.random.key(0), directions
    )

  def test_projections_estimate_the_gram_matrix(self):
    got = self.projections()
    chex.assert_shape(got, (4, 4096))
    # Off-diagonal noise is sum_{k != l} psi_ik psi_jl s_k s_l / R: at most
    # 4 / sqrt(4096) = .0625 in one sd; 4 sd.
    np.testing.assert_allclose(got @ got.T / 4096, SCORES @ SCORES.T, atol=0.25)

  def test_projections_are_directional_derivatives(self):
    # Signs s: row 1 is s_a, row 2 s_b, row 3 their sum, row 4 2 s_b - s_a.
    got = self.projections(directions=16)
    np.testing.assert_array_equal(jnp.abs(got[:2]), np.ones((2, 16)))
    np.testing.assert_array_equal(got[2], got[0] + got[1])
    np.testing.assert_array_equal(got[3], 2 * got[1] - got[0])

  @chex.variants(with_jit=True, without_jit=True)
  def test_norm_is_the_paper_s(self):
    # Exact scores: sqrt(R) cancels. lambda = .1.
    run = self.variant(
      lambda s, a: natural_gradient.gram_norms(
        s, a, damping=0.1, sketched=False
      )
    )
    got = run(SCORES * jnp.sqrt(2.0), ADVANTAGES)
    np.testing.assert_allclose(got["norm"], 0.572848, atol=1e-5)
    np.testing.assert_allclose(got["predicted"], 0.790569, atol=1e-5)
    np.testing.assert_allclose(got["captured"], 0.724602, atol=1e-5)

  def test_random_directions_come_close(self):
    got = natural_gradient.gram_norms(
      self.projections(), ADVANTAGES, damping=0.1
    )
    np.testing.assert_allclose(got["norm"], 0.572848, rtol=0.02)

  def test_padding_and_order_change_nothing(self):
    scores = jax.random.normal(jax.random.key(1), (3, 6, 5))
    advantages = jax.random.normal(jax.random.key(2), (3, 6))
    norms = jax.jit(functools.partial(natural_gradient.gram_norms, damping=0.3))
    want = norms(scores, advantages)
    order = jnp.array([7, 2, 0, 6, 5, 1, 4, 3])
    padded = jnp.pad(scores, ((0, 0), (0, 2), (0, 0)), constant_values=jnp.nan)[
      :, order
    ]
    more = jnp.pad(advantages, ((0, 0), (0, 2)), constant_values=jnp.nan)
    got = norms(
      padded,
      more[:, order],
      valid=jnp.broadcast_to(order < 6, (3, 8)),
    )
    chex.assert_trees_all_close(got, want, rtol=1e-4)

  def test_no_signal(self):
    got = natural_gradient.gram_norms(SCORES, jnp.zeros(4), damping=0.1)
    for name in ("norm", "predicted", "captured"):
      self.assertEqual(float(got[name]), 0.0)

  def test_undamped_wide_scores_capture_everything(self):
    # The paper's trap: fewer rows than parameters.
    scores = jax.random.normal(jax.random.key(1), (4, 40))
    got = natural_gradient.gram_norms(scores, ADVANTAGES, damping=1e-6)
    np.testing.assert_allclose(got["captured"], 1.0, atol=1e-4)
    damped = natural_gradient.gram_norms(scores, ADVANTAGES, damping=1.0)
    self.assertLess(float(damped["captured"]), 0.8)


if __name__ == "__main__":
  absltest.main()
