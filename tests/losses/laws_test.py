"""What must hold of the losses whatever the numbers are."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.losses import grpo
from pivotrl_jax.losses import logprobs

ESTIMATORS = ("grpo", "loo", "rloo", "dr_grpo")
ROWS, WIDTH = 6, 5
clip = functools.partial(grpo.clipped_surrogate, clip_low=0.2, clip_high=0.28)
sequence = functools.partial(
  grpo.sequence_surrogate, clip_low=0.02, clip_high=0.03
)


def kl(estimator):
  def loss(log_probs, old, advantages, mask):
    del advantages
    return grpo.kl_penalty(log_probs, old, mask, estimator=estimator)

  return loss


def sft(log_probs, old, advantages, mask):
  del old, advantages
  return logprobs.sft_loss(log_probs, mask)


LOSSES = (
  ("clipped", clip),
  ("sequence", sequence),
  ("k1", kl("k1")),
  ("k2", kl("k2")),
  ("k3", kl("k3")),
  ("sft", sft),
)


@functools.cache
def batch():
  """Ragged rows with weights, the last one empty."""
  keys = jax.random.split(jax.random.key(0), 4)
  lengths = jnp.array([5, 3, 1, 4, 2, 0])
  live = jnp.arange(WIDTH) < lengths[:, None]
  weights = jax.random.uniform(keys[3], (ROWS, WIDTH), minval=0.5)
  return (
    -jax.random.uniform(keys[0], (ROWS, WIDTH)),
    -jax.random.uniform(keys[1], (ROWS, WIDTH)),
    jax.random.normal(keys[2], (ROWS,)),
    jnp.where(live, weights, 0.0),
  )


def _value_and_grad(loss, arrays):
  value, grad = jax.value_and_grad(
    lambda x: loss(x, *arrays[1:])[0]
  )(arrays[0])  # fmt: skip
  return value, grad


value_and_grad = jax.jit(_value_and_grad, static_argnums=0)


class LossLawTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*LOSSES)
  def test_padding_may_hold_nan(self, loss):
    run = self.variant(functools.partial(_value_and_grad, loss))
    log_probs, old, advantages, mask = batch()
    want = run((log_probs, old, advantages, mask))
    dead = mask == 0
    poisoned = (
      jnp.where(dead, jnp.nan, log_probs),
      jnp.where(dead, jnp.inf, old),
      jnp.where(dead.all(1), jnp.nan, advantages),
      mask,
    )
    got = run(poisoned)
    chex.assert_trees_all_equal(got, want)
    self.assertTrue(bool(jnp.isfinite(got[1]).all()))
    self.assertGreater(float(jnp.abs(got[1]).sum()), 0.0)

  @parameterized.named_parameters(*LOSSES)
  def test_sums_of_any_split_agree(self, loss):
    arrays = batch()
    order = jax.random.permutation(jax.random.key(1), ROWS)
    whole = value_and_grad(loss, arrays)
    parts = [
      value_and_grad(loss, tuple(x[rows] for x in arrays))
      for rows in (order[:2], order[2:])
    ]
    np.testing.assert_allclose(sum(p[0] for p in parts), whole[0], rtol=1e-5)
    np.testing.assert_allclose(
      jnp.concatenate([p[1] for p in parts]), whole[1][order], rtol=1e-5
    )

  @parameterized.named_parameters(("clipped", clip), ("sequence", sequence))
  def test_first_update_is_the_policy_gradient(self, loss):
    # At ratio 1 the gradient of a token is -A times its weight (over an
    # action, for the sequence ratio with equal weights).
    log_probs, _, advantages, mask = batch()
    mask = (mask > 0).astype(jnp.float32)
    _, grad = value_and_grad(loss, (log_probs, log_probs, advantages, mask))
    np.testing.assert_allclose(grad, -advantages[:, None] * mask, rtol=1e-5)

  @parameterized.named_parameters(("clipped", clip), ("sequence", sequence))
  def test_no_overflow_without_advantage(self, loss):
    log_probs, old, advantages, mask = batch()
    arrays = (log_probs, old - 1e4, jnp.zeros_like(advantages), mask)
    value, grad = value_and_grad(loss, arrays)
    self.assertEqual(float(value), 0.0)
    np.testing.assert_array_equal(grad, np.zeros((ROWS, WIDTH)))

  def test_clip_sides(self):
    # Ratios .5 and 2, clip [.8, 1.28]: A > 0 keeps the gradient of the low
    # one, A < 0 that of the high one (dr/dlogp = r).
    log_probs = jnp.log(jnp.array([[0.5, 2.0], [0.5, 2.0]]))
    arrays = (
      log_probs, jnp.zeros((2, 2)), jnp.array([1.0, -1.0]), jnp.ones((2, 2))
    )  # fmt: skip
    value, grad = value_and_grad(clip, arrays)
    np.testing.assert_allclose(grad, [[-0.5, 0.0], [0.0, 2.0]], atol=1e-6)
    # -(.5 + 1.28) + (.8 + 2).
    np.testing.assert_allclose(value, 1.02, rtol=1e-6)


class PropositionTest(parameterized.TestCase):
  @parameterized.parameters(*ESTIMATORS)
  def test_zero_variance_has_zero_gradient(self, estimator):
    # Prop. 3.1, off-policy too: through softmax logits, exactly 0.
    # Seven rewards of .1 have no exact mean.
    actions = jnp.array([0, 2, 1, 2, 0, 1, 1])
    old = -jnp.arange(1.0, 8.0)[:, None] / 2

    def loss(logits, rewards):
      advantages = grpo.advantages(rewards[None], estimator=estimator)[0]
      log_probs = jax.nn.log_softmax(logits)[actions][:, None]
      return clip(log_probs, old, advantages, jnp.ones((7, 1)))[0]

    logits = jnp.array([0.1, -0.2, 0.3])
    for reward in (0.0, 0.1, 1.0):
      grad = jax.grad(loss)(logits, jnp.full(7, reward))
      np.testing.assert_array_equal(grad, np.zeros(3))
    # The converse: a mixed group moves the logits.
    mixed = jax.grad(loss)(logits, jnp.eye(7)[0])
    self.assertGreater(float(jnp.abs(mixed).max()), 1e-2)


class AdvantageLawTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*ESTIMATORS)
  def test_invalid_samples_count_for_nothing(self, estimator):
    run = self.variant(
      lambda r, v: grpo.advantages(r, estimator=estimator, valid=v)
    )
    rewards = jnp.array([[0.3, 1.0, 0.2, 0.9], [1.0, 1.0, 0.0, 1.0]])
    want = grpo.advantages(rewards, estimator=estimator)
    wide = jnp.full((3, 6), jnp.nan).at[:2, 1:5].set(rewards)
    valid = jnp.zeros((3, 6), bool).at[:2, 1:5].set(True)
    got = run(wide, valid)
    np.testing.assert_allclose(got[:2, 1:5], want, rtol=1e-5)
    np.testing.assert_array_equal(got[~valid], np.zeros(10))

  @parameterized.parameters(*ESTIMATORS)
  def test_order_and_neighbours_change_nothing(self, estimator):
    rewards = jax.random.uniform(jax.random.key(0), (5, 7))
    order = jax.random.permutation(jax.random.key(1), 7)
    want = grpo.advantages(rewards, estimator=estimator)
    got = grpo.advantages(rewards[::-1, order], estimator=estimator)
    np.testing.assert_allclose(got, want[::-1, order], rtol=1e-4, atol=1e-6)

  @parameterized.parameters(
    # The table of the paper's section 2, G = 16.
    (1, -2.8730), (2, 1.9245), (4, 0.7378), (8, 0.0), (15, 2.8730)
  )  # fmt: skip
  def test_leave_one_out_sums(self, wins, want):
    rewards = (jnp.arange(16) < wins).astype(jnp.float32)[None]
    got = grpo.advantages(rewards, estimator="loo").sum()
    np.testing.assert_allclose(got, want, atol=2e-4)

  @parameterized.parameters(*ESTIMATORS)
  def test_a_group_of_one_has_no_advantage(self, estimator):
    got = grpo.advantages(
      jnp.ones((1, 3)), estimator=estimator, valid=jnp.array([[0, 1, 0]]) > 0
    )
    self.assertTrue(bool(jnp.isfinite(got).all()))
    if estimator in ("grpo", "dr_grpo", "rloo"):
      np.testing.assert_array_equal(got, np.zeros((1, 3)))

  def test_loo_is_bounded_and_continuous(self):
    run = jax.jit(functools.partial(grpo.advantages, estimator="loo"))

    @hypothesis.given(
      st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8),
      st.sampled_from([0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 0.0]),
      st.floats(0, 1, width=32),
      st.integers(0, 7),
    )
    def law(rewards, spread, middle, lone):
      # Seven rewards that draw together around one place, and one apart.
      near = np.clip(middle + spread * (np.array(rewards) - 0.5), 0, 1)
      near[lone] = rewards[lone]
      got = np.asarray(run(jnp.array([near], jnp.float32)))[0]
      self.assertTrue((np.abs(got) <= np.sqrt(7) + 1e-5).all())
      # The lone one's limit where the others meet is its unscaled distance.
      others = np.delete(near, lone)
      distance = near[lone] - others.mean()
      if others.std(ddof=1) < 1e-5 and near.std() > 2e-3:
        self.assertAlmostEqual(got[lone], distance, delta=0.02)

    law()

  def test_loo_moves_little_where_the_others_draw_together(self):
    # As the others' spread shrinks from min_std to a tie, no step of a 200th
    # of the way changes the advantage by more than the bound's own share.
    spreads = np.linspace(1.2e-3, 0.0, 200)
    rows = 0.5 + spreads[:, None] * np.linspace(-1, 1, 7)
    rewards = np.concatenate([np.full((200, 1), 0.1), rows], 1)
    got = grpo.advantages(jnp.array(rewards, jnp.float32), estimator="loo")
    lone = np.asarray(got[:, 0])
    self.assertLess(np.abs(np.diff(lone)).max(), 0.1)
    np.testing.assert_allclose(lone[-1], -0.4, atol=1e-4)
    self.assertLess(lone.min(), -2.6)  # It does go up to the bound between.

  @parameterized.parameters(2, 3, 8, 32)
  def test_loo_of_successes_and_failures_is_never_bounded(self, size):
    wins = np.tril(np.ones((size, size)), -1)
    got = grpo.advantages(jnp.array(wins), estimator="loo")
    for k in range(1, size):
      plus = (
        1.0 if k == 1
        else np.sqrt((size - k) * (size - 2) / ((size - 1) * (k - 1)))
      )  # fmt: skip
      np.testing.assert_allclose(got[k, 0], plus, rtol=2e-4)

  def test_eq_7_is_scale_free(self):
    rewards = jax.random.uniform(jax.random.key(0), (5, 7))
    np.testing.assert_allclose(
      grpo.advantages(3.0 * rewards + 1.0, estimator="grpo"),
      grpo.advantages(rewards, estimator="grpo"),
      atol=1e-4,
    )


class KlGradientTest(parameterized.TestCase):
  @parameterized.parameters("k1", "k2", "k3")
  def test_what_is_descended(self, estimator):
    # Expectation over all actions of a softmax, samples held fixed.
    logits, ref = (
      jnp.array([0.2, -0.4, 1.0]),
      jnp.log(jnp.array([0.2, 0.5, 0.3])),
    )
    policy = jax.nn.softmax(logits)

    def loss(z):
      return grpo.kl_penalty(
        jax.nn.log_softmax(z)[None], ref[None], policy[None],
        estimator=estimator,
      )[0]  # fmt: skip

    forward = lambda z: jax.nn.softmax(z) @ (jax.nn.log_softmax(z) - ref)
    reverse = lambda z: jnp.exp(ref) @ (ref - jax.nn.log_softmax(z))
    want = {
      "k1": jnp.zeros(3),
      "k2": jax.grad(forward)(logits),
      "k3": jax.grad(reverse)(logits),
    }[estimator]
    np.testing.assert_allclose(jax.grad(loss)(logits), want, atol=1e-6)
    if estimator != "k2":
      np.testing.assert_allclose(loss(logits), forward(logits), atol=1e-6)


class WeightsLawTest(parameterized.TestCase):
  @parameterized.parameters(
    # Token losses 1..3 in one action and 4 in another; a third is empty.
    # (1 + 2 + 3 + 4) / 4; (2 + 4) / 2; (6 + 4) / 8 over two actions.
    ("token", 2.5), ("sequence", 3.0), ("constant", 10 / 8 / 2)
  )  # fmt: skip
  def test_weighted_mean(self, norm, want):
    mask = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    losses = jnp.array([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weights = grpo.token_weights(mask, norm=norm, width=8)
    got = (losses * weights).sum() / grpo.divisor(weights, norm=norm)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # Split anyhow, the divisors add up.
    parts = sum(grpo.divisor(weights[i : i + 1], norm=norm) for i in range(3))
    np.testing.assert_allclose(
      parts, grpo.divisor(weights, norm=norm), rtol=1e-6
    )

  def test_unknown_norm(self):
    with self.assertRaisesRegex(ValueError, "'batch'; expected token"):
      grpo.token_weights(jnp.ones((1, 1)), norm="batch")


class LogProbsLawTest(parameterized.TestCase):
  def arrays(self, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return (
      jax.random.normal(keys[0], (9, 4)).astype(dtype),
      jax.random.normal(keys[1], (4, 33)),
      jax.random.randint(keys[2], (9,), 0, 33),
    )

  def test_forward_mode_agrees_with_reverse(self):
    hidden, unembed, targets = self.arrays()
    fun = lambda h: logprobs.token_log_probs(h, unembed, targets, chunk=4)[0]
    along = jax.random.normal(jax.random.key(5), hidden.shape)
    _, tangent = jax.jvp(fun, (hidden,), (along,))
    _, pullback = jax.vjp(fun, hidden)
    for row in (0, 3, 8):
      grad = pullback(jnp.zeros(9).at[row].set(1.0))[0]
      np.testing.assert_allclose(tangent[row], (grad * along).sum(), atol=1e-5)

  def test_bfloat16_hidden_gives_float32(self):
    hidden, unembed, targets = self.arrays(jnp.bfloat16)
    log_probs, entropy = logprobs.token_log_probs(
      hidden, unembed, targets, chunk=4
    )
    chex.assert_type([log_probs, entropy], jnp.float32)
    # The products are those of the rounded factors, summed in float32.
    exact = hidden.astype(jnp.float32) @ unembed.astype(jnp.bfloat16).astype(
      jnp.float32
    )
    want = jax.nn.log_softmax(exact)[jnp.arange(9), targets]
    np.testing.assert_allclose(log_probs, want, atol=1e-5)

  def test_no_array_of_all_logits(self):
    # V = 33: nothing of 9 or 12 rows by 33, in either pass, nor saved.
    hidden, unembed, targets = self.arrays()
    fun = lambda h, u: logprobs.token_log_probs(h, u, targets, chunk=3)[0].sum()
    text = str(jax.make_jaxpr(jax.grad(fun, (0, 1)))(hidden, unembed))
    self.assertIn("f32[3,33]", text)
    for shape in ("9,33]", "3,3,33]"):
      self.assertNotIn(shape, text)


if __name__ == "__main__":
  absltest.main()
