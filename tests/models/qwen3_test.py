"""Qwen3 against transformers' goldens, and the laws of prefix tries."""

import functools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.engines import policy
from pivotrl_jax.models import hf
from pivotrl_jax.models import mlp
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import step as step_lib

TESTDATA = pathlib.Path(__file__).parent.parent / "testdata"
TINY = qwen3.Config(64, 32, 48, 2, 4, 2, 16, tie_word_embeddings=True)


def _golden(name):
  path = TESTDATA / name
  config = hf.read_config(path)
  params = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32), hf.load_params(path, config)
  )
  return config, params, np.load(path / "golden.npz")


def _whole(shape, params, ids):
  """Logits of whole sequences: each a branch that sees no trie."""
  nothing, size = jnp.zeros_like(ids), ids.shape[1]
  hidden = qwen3.Qwen3(shape).apply(
      {"params": params}, ids[:, :1], ids,
      qwen3.Layout(
          ends=nothing[:, :1], depths=nothing[:, :1], past=nothing - 1,
          branch_ends=nothing + size,
          branch_depths=nothing + jnp.arange(size),
      ),
      reach=size - 1,
  )  # fmt: skip
  return hidden @ qwen3.unembedding(params, shape)


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(
    "qwen3_tied", "qwen3_untied", "qwen3_moe", "qwen3_moe_raw"
  )
  def test_logits_and_gradients_are_transformers(self, name):
    config, params, golden = _golden(name)
    shape = qwen3.config_from_hf(config)
    ids = jnp.asarray(golden["ids"])

    def loss(params):
      logits = _whole(shape, params, ids)
      scores = jax.nn.log_softmax(logits[:, :-1])
      picked = jnp.take_along_axis(scores, ids[:, 1:, None], -1)
      return -picked.sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    for key, keys, transposed, _ in hf.name_map(config):
      got = functools.reduce(lambda node, k: node[k], keys, grads)
      np.testing.assert_allclose(
        got.T if transposed else got,
        golden[f"grad/{key}"],
        atol=1e-4,
        rtol=1e-4,
        err_msg=key,
      )


def _rewritten_turns():
  """(prompt, action) ids of three turns; reasoning stays till the next user."""
  own = (policy.MINI / "chat_template.jinja").read_text()
  thought = "{%- if message.reasoning_content %}"
  later = "messages[loop.index:] | selectattr('role', 'equalto', 'user') | list"
  with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
    file.write(
      own.replace(
        thought, "{%- if message.reasoning_content and not (" + later + ") %}"
      )
    )
    file.flush()
    tokenizer = tokenizer_lib.load(
      policy.MINI, tokenizer_lib.Settings(chat_template=file.name)
    )
  call = types.ToolCall("f", "{}")
  messages = (
    types.Message("user", "q"),
    types.Message("assistant", "", "first", (call,)),
    types.Message("tool", "1"),
    types.Message("assistant", "a", "second"),
    types.Message("user", "r"),
    types.Message("assistant", "b", "third"),
  )
  return [
    (
      render.prompt_ids(tokenizer, messages[:i], ()),
      render.action_ids(tokenizer, messages[:i], messages[i], ()),
    )
    for i in (1, 3, 5)
  ]


class TreeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.params = nn.unbox(qwen3.init_params(TINY, jax.random.key(0)))
    trunk = rng.integers(0, 64, 23).astype(np.int32)
    other = rng.integers(0, 64, 9).astype(np.int32)
    lengths = rng.integers(1, 7, 8)
    self.rows = batches.Rows(
      # Nested prefixes of one trajectory, one prompt twice, one apart.
      prompts=[trunk[:n] for n in (23, 23, 11, 5, 17, 1)] + [other, other],
      actions=[rng.integers(0, 64, n).astype(np.int32) for n in lengths],
      weights=[np.full(n, 0.5, np.float32) for n in lengths],
      advantages=rng.normal(size=8).astype(np.float32),
      sampler_log_probs=[np.zeros(n, np.float32) for n in lengths],
    )

  def _sums(self, rows, **layout):
    """Loss sum, gradient and per-row log-probs of packed rows."""
    batch, places = batches.pack(rows, **layout)
    log_probs_fn = functools.partial(
      step_lib.policy_log_probs, qwen3.Qwen3(TINY), chunk=16
    )

    def loss(params):
      total, kept = 0.0, []
      for m in range(batch.tries.shape[0]):
        micro = jax.tree.map(lambda x, m=m: x[m], batch)
        log_probs, *_ = log_probs_fn(params, micro)
        masked = jnp.where(micro.mask > 0, log_probs, 0.0)
        total += (masked * micro.mask * micro.advantages[..., None]).sum()
        kept.append(masked.sum(-1))
      return total, jnp.stack(kept)

    (total, rows_out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      self.params
    )
    return total, grads, np.asarray(rows_out).reshape(-1)[places]

  def _assert_as_separate(self, rows, length):
    got = self._sums(rows)
    whole = jax.jit(lambda ids: _whole(TINY, self.params, ids)[0])
    for row, (prompt, action) in enumerate(
      zip(rows.prompts, rows.actions, strict=True)
    ):
      ids = np.concatenate([prompt, action])
      # Padded to one length: what follows a token does not matter to it.
      scores = jax.nn.log_softmax(whole(np.resize(ids, length)[None]))
      start = len(prompt) - 1
      want = sum(scores[i, ids[i + 1]] for i in range(start, len(ids) - 1))
      self.assertAlmostEqual(got[2][row], float(want), places=4)

  def test_tree_equals_separate_sequences(self):
    self._assert_as_separate(self.rows, 32)

  def test_a_template_that_rewrites_the_history_shares_equal_tokens_only(self):
    """Thinking is dropped once the user speaks again, so prompts branch."""
    turns = _rewritten_turns()
    prompts = [prompt % 64 for prompt, _ in turns]
    # The second prompt goes on from the first; the third does not.
    first, second, third = (prompt.tolist() for prompt, _ in turns)
    self.assertEqual(second[: len(first)], first)
    self.assertEqual(third[: len(first)], first)
    self.assertNotEqual(third[: len(second)], second)
    rows = batches.Rows(
      prompts=prompts,
      actions=[action % 64 for _, action in turns],
      weights=[np.ones(len(action), np.float32) for _, action in turns],
      advantages=np.ones(len(turns), np.float32),
      sampler_log_probs=[np.zeros(len(a), np.float32) for _, a in turns],
    )
    self._assert_as_separate(rows, max(map(len, prompts)) + 32)

  @parameterized.parameters(
    {"micro_batches": 2},
    {"multiple_of": 8},
    {"micro_batches": 3},
    {"batch_tokens": 24},
  )
  def test_packing_changes_nothing(self, **layout):
    chex.assert_trees_all_close(
      self._sums(self.rows), self._sums(self.rows, **layout), atol=1e-5
    )

  def test_row_order_changes_nothing(self):
    order = np.random.default_rng(1).permutation(8)
    moved = batches.Rows(
      *(
        [getattr(self.rows, name)[i] for i in order]
        for name in ("prompts", "actions", "weights")
      ),
      advantages=self.rows.advantages[order],
      sampler_log_probs=[self.rows.sampler_log_probs[i] for i in order],
    )
    want, got = self._sums(self.rows), self._sums(moved)
    chex.assert_trees_all_close(want[:2], got[:2], atol=1e-5)
    np.testing.assert_allclose(want[2][order], got[2], atol=1e-5)


class SwigluTest(absltest.TestCase):
  def test_derivatives_are_those_of_silu_times_up(self):
    # Gates from where the exponential overflows to where it is nothing.
    primals = (
      jnp.array([-200.0, -89.0, -20.0, -1.0, 0.0, 0.5, 20.0, 200.0]),
      jnp.array([2.0, -1.0, 3.0, 0.5, -2.0, 1.5, -0.3, 0.7]),
    )
    tangents = (jnp.arange(8.0) - 3.0, jnp.arange(8.0)[::-1] + 1.0)

    def plain(gate, up):
      return nn.silu(gate) * up

    chex.assert_trees_all_close(
      jax.jvp(mlp.swiglu, primals, tangents),
      jax.jvp(plain, primals, tangents),
      rtol=1e-5,
    )
    chex.assert_trees_all_close(
      jax.vjp(mlp.swiglu, *primals)[1](tangents[0]),
      jax.vjp(plain, *primals)[1](tangents[0]),
      rtol=1e-5,
    )


if __name__ == "__main__":
  absltest.main()
