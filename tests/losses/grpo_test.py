"""Advantages, surrogate and KL on worked numbers and laws."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.losses import grpo


class AdvantageTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # Mean 1/4, population std sqrt(3)/4 = .433013: .75/.433014, -.25/.433014.
      ("grpo", "grpo", [1, 0, 0, 0], [1.732047, -0.577349, -0.577349, -0.577349]),
      # The others of the success have std 0: unscaled. The others of a
      # failure are (1,0,0): mean 1/3, unbiased std .577350.
      ("loo", "loo", [1, 0, 0, 0], [1.0, -0.577349, -0.577349, -0.577349]),
      ("loo_even", "loo", [1, 1, 0, 0], [1.154699, 1.154699, -1.154699, -1.154699]),
      # 1 - 0, then 0 - 1/3.
      ("rloo", "rloo", [1, 0, 0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3]),
      ("dr_grpo", "dr_grpo", [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
  )  # fmt: skip
  def test_golden(self, estimator, rewards, want):
    run = self.variant(lambda r: grpo.advantages(r, estimator=estimator))
    np.testing.assert_allclose(
      run(jnp.array([rewards], jnp.float32))[0], want, atol=2e-6
    )

  @parameterized.parameters(
    # Eq. 7 and leave-one-out at G = 16: paper, table of section 2.
    (1, 3.8730, -0.2582, 1.0, -0.2582),
    (2, 2.6457, -0.3780, 3.6148, -0.3789),
    (4, 1.7320, -0.5773, 1.9322, -0.5826),
    (8, 1.0, -1.0, 1.0328, -1.0328),
    (15, 0.2582, -3.8730, 0.2582, -1.0),
  )
  def test_table(self, wins, plus, minus, loo_plus, loo_minus):
    rewards = (jnp.arange(16) < wins).astype(jnp.float32)[None]
    got = grpo.advantages(rewards, estimator="grpo")[0]
    loo = grpo.advantages(rewards, estimator="loo")[0]
    np.testing.assert_allclose(
      [got[0], got[-1], loo[0], loo[-1]],
      [plus, minus, loo_plus, loo_minus],
      atol=1e-4,
    )

  @parameterized.parameters("grpo", "loo", "rloo", "dr_grpo")
  def test_a_spread_that_does_not_count(self, estimator):
    # Std of seven .3 and one .3001: 1e-4 sqrt(7) / 8 = 3.3e-5. Above it, the
    # lone reward of eq. 7 would get sqrt(7) less the epsilon's share: 2.57.
    rewards = jnp.array([[0.3] * 7 + [0.3001]])
    got = grpo.advantages(rewards, estimator=estimator)
    np.testing.assert_array_equal(got, np.zeros((1, 8)))
    counted = grpo.advantages(rewards, estimator="grpo", min_std=0.0)
    np.testing.assert_allclose(counted[0, 7], 2.57, atol=0.01)

  def test_loo_where_the_others_nearly_agree(self):
    # From 0, the others are six .95 and one .9501: mean .950014, std 1e-4 /
    # sqrt(7) = 3.78e-5, a share of .0378 of min_std. The divisor is
    # 1 + .0378 (.001 - 1) = .96224, so A = -.98730; unscaled it is -.95.
    rewards = jnp.array([[0.0] + [0.95] * 6 + [0.9501]])
    got = grpo.advantages(rewards, estimator="loo")[0]
    np.testing.assert_allclose(got[0], -0.98730, atol=1e-4)
    tied = grpo.advantages(
      jnp.array([[0.0] + [0.95] * 7]), estimator="loo"
    )[0]  # fmt: skip
    np.testing.assert_allclose(tied[0], -0.95, atol=1e-6)
    # Further apart than min_std, and beyond the bound of eq. 7: sqrt(7).
    apart = grpo.advantages(
      jnp.array([[0.0] + [0.95] * 6 + [0.99]]), estimator="loo"
    )[0]  # fmt: skip
    np.testing.assert_allclose(apart[0], -np.sqrt(7), rtol=1e-6)

  @parameterized.parameters("grpo", "loo", "rloo", "dr_grpo")
  def test_equal_rewards_have_none(self, estimator):
    # 0.1 has no exact mean in binary: the zeros must be exact all the same.
    rewards = jnp.array([[0.1] * 7, [1.0] * 7, [0.0] * 7])
    got = grpo.advantages(rewards, estimator=estimator)
    np.testing.assert_array_equal(got, np.zeros((3, 7)))

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "'gae'; expected one of"):
      grpo.advantages(jnp.zeros((1, 2)), estimator="gae")


class SurrogateTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    # Ratio .6/.4 = 1.5: clipped to 1.2 when A = +1, kept when A = -1.
    ("gain_is_clipped", 1.0, -1.2, 1.0),
    ("loss_is_not", -1.0, 1.5, 0.0),
  )
  def test_golden(self, advantage, want, clipped):
    # The second token is padding, and NaN.
    run = self.variant(
        lambda new, old: grpo.clipped_surrogate(
            new, old, jnp.array([advantage]), jnp.array([[1.0, 0.0]]),
            clip_low=0.2, clip_high=0.2,
        )
    )  # fmt: skip
    loss, sums = run(
      jnp.log(jnp.array([[0.6, jnp.nan]])),
      jnp.log(jnp.array([[0.4, jnp.nan]])),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(sums["clipped"], clipped)

  def test_nan_padding_has_no_gradient(self):
    grad = jax.grad(
        lambda x: grpo.clipped_surrogate(
            x, jnp.zeros((1, 2)), jnp.ones(1), jnp.array([[1.0, 0.0]]),
            clip_low=0.2, clip_high=0.2,
        )[0]
    )(jnp.array([[0.0, jnp.nan]]))  # fmt: skip
    # d/dx of -exp(x) at 0.
    np.testing.assert_allclose(grad, [[-1.0, 0.0]])

  def test_zero_advantage_has_zero_gradient(self):
    key = jax.random.key(0)
    new, old = jax.random.normal(key, (2, 3, 5))
    grad = jax.grad(
      lambda x: grpo.clipped_surrogate(
        x, old, jnp.zeros(3), jnp.ones((3, 5)), clip_low=0.2, clip_high=0.2
      )[0]
    )(new)
    np.testing.assert_array_equal(grad, np.zeros((3, 5)))

  def test_sequence_ratio_is_the_geometric_mean(self):
    # Token ratios 2 and 1/2, so 1; A = 3, two tokens: -6.
    loss, _ = grpo.sequence_surrogate(
        jnp.log(jnp.array([[2.0, 0.5]])), jnp.zeros((1, 2)),
        jnp.array([3.0]), jnp.ones((1, 2)), clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    np.testing.assert_allclose(loss, -6.0, rtol=1e-6)


class KlTest(parameterized.TestCase):
  @parameterized.parameters(
      # d = log 2: log 2; (log 2)^2 / 2; 1/2 - 1 + log 2.
      ("k1", np.log(2)), ("k2", np.log(2) ** 2 / 2), ("k3", np.log(2) - 0.5)
  )  # fmt: skip
  def test_golden(self, estimator, want):
    got, _ = grpo.kl_penalty(
      jnp.array([[np.log(0.4), jnp.nan]]),
      jnp.array([[np.log(0.2), jnp.nan]]),
      jnp.array([[1.0, 0.0]]),
      estimator=estimator,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


class WeightsTest(parameterized.TestCase):
  def test_golden(self):
    mask = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(
      grpo.token_weights(mask, norm="sequence"),
      [[0.5, 0.5, 0, 0], [0.25] * 4],
    )
    np.testing.assert_allclose(
      grpo.token_weights(mask, norm="constant"), mask / 4
    )

  def test_importance_is_capped_and_floored(self):
    # Ratios 8, 1/8 and padding.
    got = grpo.truncated_importance_weights(
        jnp.log(jnp.array([8.0, 0.125, jnp.nan])), jnp.zeros(3),
        jnp.array([1.0, 1.0, 0.0]), cap=5.0, floor=0.25,
    )  # fmt: skip
    np.testing.assert_allclose(got, [5.0, 0.25, 1.0])


if __name__ == "__main__":
  absltest.main()
