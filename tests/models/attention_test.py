"""Every body of attention against `dense`, and what `dense` is."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.models import attention
from pivotrl_jax.models import attention_pallas
from pivotrl_jax.models import attention_xla

dense = attention_xla.dense


def _inputs(queries, keys, *, dtype=jnp.float32, width=16):
  """Two batches, 4 heads on 2, and places from nothing to everything."""
  seeds = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(seeds[0], (2, queries, 4, width), dtype)
  k, v = (
    jax.random.normal(seed, (2, 2, keys, width), dtype) for seed in seeds[1:3]
  )
  place = jax.random.randint(seeds[3], (2, queries), -1, keys)
  return q, k, v, place.at[0, 0].set(-1).at[1, 1].set(keys - 1)


def _trie(rng, size):
  """Ends `[size]` of a random trie, laid out depth first."""
  ends, path = np.full(size, size), []
  for place in range(size):
    # Mostly the next token; now and then some way up, or a new root.
    if rng.random() < 0.1:
      keep = rng.integers(0, len(path) + 1)
      ends[path[keep:]] = place
      del path[keep:]
    path.append(place)
  return ends


def _tries(size):
  rng = np.random.default_rng(size)
  return jnp.array([_trie(rng, size), _trie(rng, size)])


class DenseTest(absltest.TestCase):
  def test_golden(self):
    q = jnp.ones((1, 1, 1, 4))
    k = jnp.ones((1, 1, 3, 4))
    v = jnp.array([1.0, 3.0, 5.0])[:, None] * k
    # Two equal keys are visible: the mean of their values, 2.
    out, lse = dense(q, k, v, jnp.array([[1]]))
    np.testing.assert_allclose(out, np.full((1, 1, 1, 4), 2.0), atol=1e-6)
    # Both scores are 4 / sqrt(4) = 2; log-sum-exp = 2 + log 2.
    np.testing.assert_allclose(lse, [[[2 + np.log(2)]]], atol=1e-6)
    # The second ends before the third: what stands there sees 1 and 5.
    out, _ = dense(q, k, v, jnp.array([[2]]), jnp.array([[3, 2, 3]]))
    np.testing.assert_allclose(out, np.full((1, 1, 1, 4), 3.0), atol=1e-6)

  def test_merge_is_attention_over_the_union(self):
    q, k, v, _ = _inputs(5, 9)
    want, _ = dense(q, k, v, jnp.full((2, 5), 8))
    got = attention.merge(
      dense(q, k[:, :, :4], v[:, :, :4], jnp.full((2, 5), 3)),
      dense(q, k[:, :, 4:], v[:, :, 4:], jnp.full((2, 5), 4)),
    )
    np.testing.assert_allclose(got, want, atol=1e-6)


class BodiesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("blocks of 8", lambda *x: attention_xla.blockwise(*x, (8, 8))),
    ("blocks of 64 and 5", lambda *x: attention_xla.blockwise(*x, (64, 5))),
    ("one block", lambda *x: attention_xla.blockwise(*x, (256, 256))),
    ("pallas", attention_pallas.attend),
  )
  def test_outputs_and_gradients_are_those_of_dense(self, body):
    # Neither count is a multiple of a block; more than one of each.
    q, k, v, place = _inputs(71, 153)
    ends = _tries(153)

    def scalar(attend):
      def f(q, k, v):
        out, lse = attend(q, k, v, place, ends)
        seen = jnp.where((place >= 0)[..., None], lse, 0.0)
        return jnp.sin(out).sum() + 0.3 * seen.sum(), (out, seen)

      return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)

    chex.assert_trees_all_close(
      scalar(dense), scalar(body), atol=2e-5, rtol=1e-5
    )

  @parameterized.named_parameters(
    ("blocks of 8", lambda *x: attention_xla.blockwise(*x, (8, 8))),
    ("blocks of 64 and 5", lambda *x: attention_xla.blockwise(*x, (64, 5))),
    ("one block", lambda *x: attention_xla.blockwise(*x, (256, 256))),
    ("pallas", attention_pallas.attend),
  )
  def test_forward_mode_is_that_of_dense(self, body):
    q, k, v, place = _inputs(71, 153)
    ends = _tries(153)
    keys = jax.random.split(jax.random.key(7), 3)
    along = tuple(
      jax.random.normal(key, x.shape)
      for key, x in zip(keys, (q, k, v), strict=True)
    )

    def tangents(attend):
      f = lambda *x: attend(*x, place, ends)
      out, (d_out, d_lse) = jax.jit(lambda: jax.jvp(f, (q, k, v), along))()
      return out[0], d_out, jnp.where((place >= 0)[..., None], d_lse, 0.0)

    chex.assert_trees_all_close(
      tangents(dense), tangents(body), atol=2e-5, rtol=1e-5
    )

  @parameterized.parameters("dense", "xla", "fine", "pallas")
  def test_queries_that_stand_apart(self, body):
    # Two blocks of queries and of keys, and both kinds of padding.
    q, k, v, _ = _inputs(300, 700)
    rng = np.random.default_rng(0)
    place = np.sort(rng.integers(-1, 700, (2, 300)), axis=1)
    ends = _tries(700)
    want, _ = dense(q, k, v, jnp.array(place), ends)
    got, _ = attention.attend_apart(q, k, v, place, ends, body=body)
    np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.parameters("xla", "pallas")
  def test_sixteen_bits_are_as_near_as_their_rounding(self, body):
    *x, place = _inputs(71, 153, dtype=jnp.bfloat16)
    seen = place, _tries(153)
    want = dense(*(y.astype(jnp.float32) for y in x), *seen)[0]
    got = attention.attend(*x, *seen, body=body)[0]
    self.assertEqual(got.dtype, jnp.bfloat16)
    # Values of size 1 and 8 bits: 2^-8, on the scores and on the weights.
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)

  @parameterized.parameters("dense", "xla", "fine", "pallas", "cudnn")
  def test_a_path_over_itself_is_causal(self, body):
    q, k, v, _ = _inputs(20, 20)
    length = jnp.array([20, 13])
    place = jnp.broadcast_to(jnp.arange(20), (2, 20))
    if body == "cudnn":  # What it is asked for, computed by XLA.
      got = attention.by_library(q, k, v, length, implementation="xla")
    else:
      ends = jnp.where(place < length[:, None], length[:, None], 0)
      got = attention.attend_self(q, k, v, ends, body=body)
    want, _ = dense(q, k, v, place)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1, :13], want[1, :13], atol=1e-5)

  @parameterized.product(
    body=["dense", "xla", "fine", "pallas"], reach=[40, 70]
  )
  def test_what_is_near(self, body, reach):
    # Branches of 41 tokens or less, one after the other, and some padding;
    # under a reach of 40 blocks are taken apart.
    q, k, v, _ = _inputs(150, 150)
    place = jnp.broadcast_to(jnp.arange(150), (2, 150))
    ends = jnp.where(
      place < 30, 30, jnp.minimum(30 + (place + 11) // 41 * 41, 140)
    )
    ends = jnp.where(place < 140, ends, 0)
    out, lse = attention.attend_near(q, k, v, ends, reach=reach, body=body)
    want = dense(q, k, v, place, ends)
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[:, :140], (out, lse)),
      jax.tree.map(lambda x: x[:, :140], want),
      atol=1e-5,
    )

  @parameterized.product(
    body=["xla", "pallas"], limits=[(512, 900), (513, 900), (700, 1024)]
  )
  def test_one_query_a_branch(self, body, limits):
    q, k, v, _ = _inputs(32, 1024)
    place = jnp.where(jnp.arange(32) < 16, *limits) - 1
    seen = jnp.stack([place, place - 5]), _tries(1024)
    keys = attention.trie_keys(k, body=body)
    chex.assert_trees_all_close(
      jax.jit(attention.attend_trie, static_argnames="body")(
        q, keys, v, *seen, body=body
      ),
      dense(q, k, v, *seen),
      atol=1e-5,
    )

  @parameterized.parameters(1, 100, 512, 1100)
  def test_parts_of_the_keys(self, keys):
    inputs = *_inputs(7, keys), _tries(keys)
    chex.assert_trees_all_close(
      attention_pallas.decode(*inputs)[0], dense(*inputs)[0], atol=1e-5
    )

  def test_one_query_over_its_own_keys(self):
    q, k, v, _ = _inputs(3, 7)
    k, v = (jnp.repeat(x, 3, axis=0) for x in (k, v))
    out, lse = attention.attend_own(q, jnp.swapaxes(k, 2, 3), v, 5)
    want = dense(q.reshape(6, 1, 4, 16), k, v, jnp.full((6, 1), 4))
    chex.assert_trees_all_close(
      (out.reshape(6, 1, 4, 16), lse.reshape(6, 1, 4)), want, atol=1e-6
    )

  def test_kernels_are_lowered_for_gpu(self):
    q, k, v, place = _inputs(128, 1024, dtype=jnp.bfloat16, width=64)
    seen = place, _tries(1024)

    def gradient(*x):
      return jax.grad(
        lambda *x: attention_pallas.attend(*x, *seen)[0].sum(),
        (0, 1, 2),
      )(*x)

    def tangent(*x):
      attend = lambda *x: attention_pallas.attend(*x, *seen)
      return jax.jvp(attend, x, x)[1]

    card = jax.sharding.AbstractMesh(
      (),
      (),
      abstract_device=jax.sharding.AbstractDevice(
        device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"
      ),
    )
    with (
      mock.patch.object(jax, "default_backend", lambda: "gpu"),
      jax.sharding.use_abstract_mesh(card),
    ):
      for function, kernels in (
        (gradient, 3),
        (tangent, 2),
        (lambda *x: attention_pallas.decode(*x, *seen), 1),
      ):
        lowered = (
          jax.jit(function).trace(q, k, v).lower(lowering_platforms=("cuda",))
        )
        text = lowered.as_text()
        self.assertEqual(text.count("@__gpu$xla.gpu.triton"), kernels)

  @parameterized.parameters(
    ("cpu", "bfloat16", "xla"),
    ("tpu", "bfloat16", "xla"),
    ("gpu", "bfloat16", "cudnn"),
    ("gpu", "float32", "pallas"),
  )
  def test_chosen_by_backend(self, backend, dtype, body):
    with mock.patch.object(jax, "default_backend", lambda: backend):
      self.assertEqual(attention._chosen("auto", jnp.dtype(dtype)), body)


if __name__ == "__main__":
  absltest.main()
