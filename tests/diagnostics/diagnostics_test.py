"""The paper's test vectors (3.4), and what must hold of any input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.diagnostics import ordering
from pivotrl_jax.diagnostics import signal

PI0 = jnp.array([0.30, 0.24, 0.18, 0.12, 0.10, 0.06])
MASK = jnp.array([0, 1, 0, 1, 1, 0], bool)
DRIFTED = jnp.array([0.11, 0.35, 0.08, 0.20, 0.16, 0.10])


class SignalTest(parameterized.TestCase):
  def test_trackers(self):
    # Population stds 0, sqrt(3)/4, 1/2, 0, sqrt(3)/4: mean .273205; variances
    # 0, 3/16, 1/4, 0, 3/16, times 4/3, mean 1/6; two of five groups are flat.
    rewards = jnp.array([
        [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]
    ])  # fmt: skip
    got = signal.group_signal(rewards)
    self.assertAlmostEqual(float(got["reward_std"]), 0.273205, places=6)
    self.assertAlmostEqual(float(got["zero_variance"]), 0.4, places=6)
    self.assertAlmostEqual(float(got["reward_variance"]), 1 / 6, places=6)
    self.assertAlmostEqual(float(got["reward_mean"]), 0.5, places=6)

  def test_a_spread_that_does_not_count(self):
    # Stds 3.3e-5 and .25.
    rewards = jnp.array([[0.3] * 7 + [0.3001], [0.0] * 4 + [0.5] * 4])
    for min_std, want in ((0.0, 0.0), (1e-3, 0.5), (0.25, 1.0)):
      got = signal.group_signal(rewards, min_std=min_std)
      self.assertEqual(float(got["zero_variance"]), want)

  def test_equal_rewards_have_no_variance(self):
    got = signal.group_signal(jnp.full((3, 7), 0.1))
    self.assertEqual(float(got["zero_variance"]), 1.0)
    self.assertEqual(float(got["reward_std"]), 0.0)

  @parameterized.parameters(
    (0.05, 0.1175, 0.6634, 0.1552, 0.4401, 0.3366, 0.5599),
    (0.30, 0.4122, 0.0577, 0.4394, 0.0033, 0.8844, 0.9895),
    (0.60, 0.4516, 0.0175, 0.4729, 0.0003, 0.4053, 0.4728),
  )
  def test_group_size_table(self, p, e8, z8, e16, z16, k8, k16):
    np.testing.assert_allclose(
      [
        signal.expected_std(p, 8),
        signal.zero_variance_probability(p, 8),
        signal.expected_std(p, 16),
        signal.zero_variance_probability(p, 16),
        signal.keep_probability(p, 8, 0.6),
        signal.keep_probability(p, 16, 0.6),
      ],
      [e8, z8, e16, z16, k8, k16],
      atol=6e-5,
    )

  def test_gamma_and_beta(self):
    star = PI0 * jnp.exp(MASK / 0.5)
    star /= star.sum()
    self.assertAlmostEqual(
      float(signal.gamma(star, MASK.astype(float), 0.5)), 1.375777, places=5
    )
    # q = .71, rho = .46; 1/2G = 1/64 clips neither.
    got = signal.effective_beta(jnp.array([0.71]), jnp.array([0.46]), 32)
    self.assertAlmostEqual(float(got[0]), 0.947215, places=5)
    same = signal.effective_beta(jnp.array([0.5]), jnp.array([0.5]), 8)
    self.assertEqual(float(same[0]), np.inf)


class OrderingTest(parameterized.TestCase):
  def test_exact_split(self):
    got = ordering.kl_split(DRIFTED, PI0, MASK)
    want = {
        "kl": 0.185264, "bernoulli": 0.127878, "inside": 0.001762,
        "outside": 0.193567, "mass": 0.71,
    }  # fmt: skip
    for name, value in want.items():
      self.assertAlmostEqual(float(got[name]), value, places=5, msg=name)

  def test_sampled_split(self):
    actions = jnp.array([1, 1, 1, 3, 3, 4, 4, 1, 0, 5, 2, 0])
    got = ordering.sampled_split(
      jnp.log(DRIFTED)[actions], jnp.log(PI0)[actions], MASK[actions], 0.46
    )
    want = {
        "kl": 0.097011, "inside": 0.062791, "outside": -0.094251,
        "jump": 1.010532,
    }  # fmt: skip
    for name, value in want.items():
      self.assertAlmostEqual(float(got[name]), value, places=5, msg=name)

  @parameterized.parameters((MASK, 0.059469), (~MASK, 0.685508))
  def test_spread(self, side, want):
    got = ordering.spread(jnp.log(DRIFTED), jnp.log(PI0), side, DRIFTED)
    self.assertAlmostEqual(float(got), want, places=5)

  def test_order(self):
    inside, outside, whole = (
      ordering.order_kept(jnp.log(DRIFTED), jnp.log(PI0), side)
      for side in (MASK, ~MASK, jnp.ones(6, bool))
    )
    self.assertAlmostEqual(float(inside["tau"]), 1.0, places=6)
    self.assertAlmostEqual(float(outside["tau"]), 1 / 3, places=6)
    self.assertAlmostEqual(float(whole["tau"]), 0.2, places=6)
    self.assertEqual(int(outside["inversions"]), 1)
    # 5 of 6 within-class pairs.
    self.assertEqual(int(inside["kept"] + outside["kept"]), 5)
    self.assertEqual(int(inside["pairs"] + outside["pairs"]), 6)

  def test_ties_are_not_kept(self):
    got = ordering.order_kept(
        jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0]),
        jnp.ones(3, bool),
    )  # fmt: skip
    # Pairs (0,1) tied now, (0,2) and (1,2) kept: tau-b = 2 / sqrt(3 * 2).
    self.assertEqual(int(got["kept"]), 2)
    self.assertAlmostEqual(float(got["tau"]), 2 / np.sqrt(6), places=6)

  def test_nan_outside_the_class_changes_nothing(self):
    members = jnp.array([True, True, False])
    now, start = jnp.array([1.0, 0.0, jnp.nan]), jnp.array([0.5, 0.2, jnp.nan])
    got = ordering.order_kept(now, start, members)
    self.assertEqual(float(got["tau"]), 1.0)
    # Log-ratios .5 and -.2: sd .35.
    self.assertAlmostEqual(
      float(ordering.spread(now, start, members)), 0.35, places=6
    )


if __name__ == "__main__":
  absltest.main()
