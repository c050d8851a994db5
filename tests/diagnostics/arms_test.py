"""The paper's arms at equal KL (3.4), batches, padding and Theorem 3.2."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.diagnostics import ordering
from pivotrl_jax.diagnostics import signal

PI0 = np.array([0.30, 0.24, 0.18, 0.12, 0.10, 0.06])
MASK = np.array([0, 1, 0, 1, 1, 0], bool)
DEMO = np.eye(6)[4]
KL = 0.354898


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def kl_path(reward):
  return lambda t: softmax(np.log(PI0) + t * reward)


def flow(direction, steps=1000):
  """Gradient flow on the logits for a time t."""

  def update(t):
    z = np.log(PI0)
    for _ in range(steps):
      z = z + t / steps * direction(softmax(z))
    return softmax(z)

  return update


def matched(update):
  """The policy of an arm at which KL(pi || pi_0) is the table's."""
  low, high = 0.0, 16.0
  for _ in range(40):
    middle = (low + high) / 2
    policy = update(middle)
    if policy @ np.log(policy / PI0) < KL:
      low = middle
    else:
      high = middle
  return update(high)


ARMS = {
  "functional": kl_path(MASK.astype(float)),
  "strict": kl_path(DEMO),
  "sft": flow(lambda p: DEMO - p),
  "plain": flow(lambda p: p * (MASK - p @ MASK)),
}


class ArmsTest(chex.TestCase):
  @parameterized.named_parameters(
    # pi(M), demonstrated action, KL inside and outside, tau inside and
    # outside, spread inside and outside, inversions inside and outside.
    (
      "functional", "functional",
      (0.862908, 0.187589, 0, 0, 1, 1, 0, 0, 0, 0),
    ),
    (
      "strict", "strict",
      (0.654230, 0.423717, 0.425844, 0, -1 / 3, 1, 0.902705, 0, 2, 0),
    ),
    (
      "sft", "sft",
      (0.658602, 0.421770, 0.413584, 0.007853, -1 / 3, 1,
       0.891384, 0.127558, 2, 0),
    ),
    (
      "plain_pg", "plain",
      (0.825343, 0.102012, 0.077672, 0.031272, 1, 1, 0.375413, 0.259137,
       0, 0),
    ),
  )  # fmt: skip
  def test_table(self, arm, want):
    policy = jnp.array(matched(ARMS[arm]), jnp.float32)
    split = ordering.kl_split(policy, jnp.array(PI0), jnp.array(MASK))
    sides = jnp.array([MASK, ~MASK])
    now, start = (
      jnp.broadcast_to(jnp.log(p), (2, 6)) for p in (policy, jnp.array(PI0))
    )
    order = ordering.order_kept(now, start, sides)
    spread = ordering.spread(now, start, sides, policy)
    got = (
      split["mass"], policy[4], split["inside"], split["outside"],
      *order["tau"], *spread, *order["inversions"],
    )  # fmt: skip
    # 1000 Euler steps of the flows; with 4000 a probability moves by 2e-5.
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(split["kl"], KL, atol=1e-5)
    q = split["mass"]
    np.testing.assert_allclose(
      split["bernoulli"] + q * split["inside"] + (1 - q) * split["outside"],
      split["kl"],
      atol=1e-6,
    )

  def test_even_the_ideal_reorders_across_classes(self):
    star = jnp.array(ARMS["functional"](2.0))
    got = ordering.order_kept(
      jnp.log(star), jnp.log(jnp.array(PI0)), jnp.ones(6, bool)
    )
    np.testing.assert_allclose(got["tau"], 1 / 3, atol=1e-6)
    self.assertEqual(int(got["inversions"]), 5)

  def test_on_the_kl_path_the_jump_is_one_over_beta(self):
    # beta = .5: log-ratios differ by 2 between the classes, whatever is drawn.
    star = jnp.array(ARMS["functional"](2.0))
    actions = jnp.array([[1, 0, 3, 4], [5, 5, 2, 1]])
    got = ordering.sampled_split(
      jnp.log(star)[actions], jnp.log(jnp.array(PI0))[actions],
      jnp.array(MASK)[actions], jnp.array([0.46, 0.46]),
    )  # fmt: skip
    np.testing.assert_allclose(got["jump"], [2.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(got["mass"], [0.75, 0.25])
    beta = signal.effective_beta(
      jnp.array([0.862908]), jnp.array([0.46]), group_size=16
    )
    np.testing.assert_allclose(beta, [0.5], atol=1e-5)


class PaddingTest(chex.TestCase):
  """A batch of ragged, padded states gives what each gives alone."""

  def states(self):
    # Of the two padded actions of the second state, tests mark one accepted.
    keys = jax.random.split(jax.random.key(0), 3)
    accept = jnp.array([[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]], bool)
    valid = jnp.array([[1] * 6, [1, 1, 1, 1, 0, 0]], bool)
    policy, start = (
      jax.nn.softmax(jnp.where(valid, jax.random.normal(k, (2, 6)), -1e9))
      for k in keys[:2]
    )
    return policy, start, accept, valid

  @chex.variants(with_jit=True, without_jit=True)
  def test_exact_split(self):
    policy, start, accept, valid = self.states()
    run = self.variant(ordering.kl_split)
    got = run(
      jnp.where(valid, policy, jnp.nan), jnp.where(valid, start, jnp.nan),
      accept.at[1, 4].set(True), valid,
    )  # fmt: skip
    want = ordering.kl_split(policy[1, :4], start[1, :4], accept[1, :4])
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[1], got), want, atol=1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_samples(self):
    policy, start, accept, valid = self.states()
    now, before = jnp.log(policy), jnp.log(start)
    rho = jnp.array([0.3, 0.6])

    @self.variant
    def run(now, before, accept, valid):
      return (
        ordering.sampled_split(now, before, accept, rho, valid),
        ordering.within_class_kept(now, before, accept, valid),
      )

    got = run(
      jnp.where(valid, now, jnp.nan), jnp.where(valid, before, jnp.inf),
      accept.at[1, 4].set(True), valid,
    )  # fmt: skip
    alone = (now[1, :4], before[1, :4], accept[1, :4])
    want = (
      ordering.sampled_split(*alone, rho[1]),
      ordering.within_class_kept(*alone),
    )
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[1], got), want, atol=1e-6
    )

  def test_order_of_actions_changes_nothing(self):
    policy, start, accept, valid = self.states()
    order = jnp.array([4, 0, 5, 2, 1, 3])
    now, before = jnp.log(policy)[0], jnp.log(start)[0]
    members = accept[0]
    chex.assert_trees_all_close(
      ordering.order_kept(now, before, members),
      ordering.order_kept(now[order], before[order], members[order]),
    )

  def test_within_class_share(self):
    drifted = jnp.log(jnp.array([0.11, 0.35, 0.08, 0.20, 0.16, 0.10]))
    got = ordering.within_class_kept(
      drifted, jnp.log(jnp.array(PI0)), jnp.array(MASK)
    )
    np.testing.assert_allclose(got, 5 / 6, rtol=1e-6)

  def test_empty_classes_are_nan_not_wrong(self):
    none = jnp.zeros(3, bool)
    got = ordering.sampled_split(
      jnp.array([-1.0, -2.0, -3.0]), jnp.array([-1.5, -2.0, -3.5]), none, 0.2
    )
    self.assertTrue(np.isnan(got["inside"]) and np.isnan(got["jump"]))
    # Mean of .5, 0, .5, minus log(1 / .8).
    np.testing.assert_allclose(
      got["outside"], 1 / 3 - np.log(1 / 0.8), rtol=1e-5
    )
    kept = ordering.within_class_kept(
      jnp.zeros(1), jnp.zeros(1), jnp.ones(1, bool)
    )
    self.assertTrue(np.isnan(kept))

  @chex.variants(with_jit=True, without_jit=True)
  def test_group_signal(self):
    run = self.variant(signal.group_signal)
    # Groups (1, 0, 0) and (1, 1), and one that is all padding: stds
    # sqrt(2)/3, 0; unbiased variances 1/3, 0; mean 3/5.
    rewards = jnp.full((3, 4), jnp.nan)
    rewards = rewards.at[0, :3].set(jnp.array([1.0, 0.0, 0.0]))
    rewards = rewards.at[1, 2:].set(1.0)
    got = run(rewards, ~jnp.isnan(rewards))
    want = {
      "reward_mean": 0.6, "reward_std": np.sqrt(2) / 6, "zero_variance": 0.5,
      "reward_variance": 1 / 6,
    }  # fmt: skip
    chex.assert_trees_all_close(got, jax.tree.map(jnp.float32, want), rtol=1e-6)


class TheoremTest(parameterized.TestCase):
  @parameterized.parameters((2, 0.24), (3, 0.339411), (4, 0.388960))
  def test_expected_std_by_enumeration(self, size, want):
    # 3.2 (v), p = .6: all 2^G groups, weighted.
    total = 0.0
    for group in itertools.product([0.0, 1.0], repeat=size):
      share = 0.6 ** sum(group) * 0.4 ** (size - sum(group))
      total += share * np.std(group)
    np.testing.assert_allclose(total, want, atol=1e-6)
    np.testing.assert_allclose(
      signal.expected_std(jnp.array([0.6]), size), [want], atol=1e-6
    )

  @parameterized.parameters(
    # G = 8 and 16 of the group-size table: norm = E[std] / sigma.
    (0.05, 0.2179, 0.5390, 0.7120),
    (0.10, 0.3000, 0.6983, 0.8543),
    (0.50, 0.5000, 0.9278, 0.9671),
    (0.163, 0.3694, 0.8047, 0.9209),
  )
  def test_norm_table(self, p, sigma, norm8, norm16):
    np.testing.assert_allclose(np.sqrt(p * (1 - p)), sigma, atol=5e-5)
    for size, want in ((8, norm8), (16, norm16)):
      got = signal.expected_std(p, size) / np.sqrt(p * (1 - p))
      np.testing.assert_allclose(got, want, atol=6e-5)

  def test_rates_of_many_states_at_once(self):
    p = jnp.array([[0.0, 0.1], [0.5, 1.0]])
    kept = signal.keep_probability(p, 8, 0.6)
    np.testing.assert_allclose(kept, [[0.0, 0.5691], [0.6328, 0.0]], atol=6e-5)
    np.testing.assert_allclose(
      signal.zero_variance_probability(p, 8),
      [[1.0, 0.4305], [0.0078, 1.0]],
      atol=6e-5,
    )

  def test_keeping_is_strict(self):
    # K = 5, threshold .6: k = 1, 2, not 3. 5 and 10 of 32 groups.
    np.testing.assert_allclose(
      signal.keep_probability(0.5, 5, 0.6), 15 / 32, rtol=1e-5
    )

  def test_beta_is_clipped(self):
    # q = 1 is taken as 1 - 1/16: logit log 15; rho = .5 has logit 0.
    got = signal.effective_beta(jnp.array([1.0]), jnp.array([0.5]), 8)
    np.testing.assert_allclose(got, [1 / np.log(15)], rtol=1e-5)
    fell = signal.effective_beta(jnp.array([0.0]), jnp.array([0.5]), 8)
    np.testing.assert_allclose(fell, [-1 / np.log(15)], rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
