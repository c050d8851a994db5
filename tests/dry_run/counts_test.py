"""Counts by hand, on shapes small enough for it, and on known models."""

import flax.linen as nn
import jax
import pytest

from pivotrl_jax.dry_run import cards
from pivotrl_jax.dry_run import counts
from pivotrl_jax.dry_run import predict
from pivotrl_jax.models import qwen3

_DENSE = qwen3.Config(
  vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=2,
  num_attention_heads=2, num_key_value_heads=1, head_dim=2,
)  # fmt: skip
_SPARSE = qwen3.Config(
  vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=2,
  num_attention_heads=2, num_key_value_heads=1, head_dim=2, num_experts=4,
  num_experts_per_tok=2, moe_intermediate_size=3, norm_topk_prob=True,
  tie_word_embeddings=True,
)  # fmt: skip
# One prompt of 3 tokens (but for the last), 2 actions of 2: 4 branch tokens.
_SIZES = counts.Sizes(pivots=1, group=2, prompt=3, action=2)


def test_parameters():
  # A layer: q and o 2 x 4 x 4, k and v 2 x 4 x 2, MLP 3 x 4 x 6, norms 4 + 4
  # + 2 + 2: 132. Embedding and head 40 each, last norm 4.
  assert counts.parameters(_DENSE) == 2 * 132 + 84
  # Router 4 x 4, experts 4 x (3 x 4 x 3), of which a token meets 2; tied.
  assert counts.parameters(_SPARSE) == 2 * (48 + 16 + 144 + 12) + 44
  assert counts.parameters(_SPARSE, active=True) == 2 * (48 + 16 + 72 + 12) + 44


@pytest.mark.parametrize("config", [_DENSE, _SPARSE])
def test_parameters_are_the_models(config):
  shapes = jax.eval_shape(
    lambda: nn.unbox(qwen3.init_params(config, jax.random.key(0)))
  )
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert counts.parameters(config) == count


def test_parameters_of_the_papers_model():
  config = predict.MODELS["qwen3-30b-a3b"]  # Its card: 30.5 B, 3.3 B.
  assert counts.parameters(config) == pytest.approx(30.5e9, rel=0.002)
  active = counts.parameters(config, active=True)
  assert active + 151936 * 2048 == pytest.approx(
    3.35e9,
    rel=0.01,  # The card's counts both embedding and head, 0.31 B each.
  )


def test_forward():
  found = counts.forward(_DENSE, _SIZES)
  # Keys and values of 3 + 4 tokens in both layers, 16 parameters; the rest,
  # 32 + 72, of 7 tokens in the first and of the 4 of actions in the last.
  assert found["projections"] == 2 * (16 * 14 + 104 * (7 + 4))
  # The prompt sees 1 + 2 + 3 keys in one layer; a token of an action 3 and
  # itself, the second its forerunner too: 4 and 5, twice, in two layers. A
  # pair is 2 products of 2 heads x 2, 2 FLOPs each.
  assert found["attention"] == 16 * (6 + 2 * 2 * (4 + 5))
  assert found["logits"] == 2 * 4 * 10 * 4
  assert found["experts"] == 0
  sparse = counts.forward(_SPARSE, _SIZES)
  # Two experts of 36 parameters for 7 and for 4 tokens; the router is 16.
  assert sparse["experts"] == 2 * 72 * 11
  assert sparse["projections"] == 2 * (16 * 14 + (32 + 16) * 11)


def test_a_step_is_six_flops_a_parameter_and_token_and_attention():
  config = predict.MODELS["qwen3-30b-a3b"]
  sizes = counts.Sizes(pivots=64, group=16, prompt=32768, action=4096)
  found = counts.step(config, sizes, remat=False)
  tokens = 64 * (32768 + 16 * 4096)
  # 6 N D, N without the embedding; logits of actions alone.
  layers = counts.parameters(config, active=True) - 151936 * 2048
  plain = 6 * (layers * tokens + 151936 * 2048 * 64 * 16 * 4096)
  plain += 3 * found["attention"]
  assert found["model"] == pytest.approx(plain, rel=0.02)
  again = counts.step(config, sizes, remat=True)
  assert again["model"] == found["model"]
  # Remat: layers once more.
  assert again["executed"] - found["executed"] == pytest.approx(
    found["projections"] + found["experts"] + found["attention"]
  )


def test_activations_kept():
  kept = counts.activations(_DENSE, _SIZES, remat=True, logits_chunk=5)
  assert kept["kept"] == 2 * 7 * 4 * 2  # Layers, tokens, width, bytes.
  assert kept["logits"] == 2 * 4 * 5 * 10  # Scores and their cotangents.


def test_rollouts():
  found = counts.rollouts(
    _DENSE, turns=4, contexts=2, prompt=3, seen=3, action=2, branches=2
  )
  assert (found["prefilled"], found["sampled"]) == (6, 8)
  # Keys and values of 1 head x 2 in 2 layers, 2 bytes: 16 a token. A sampled
  # token reads 3 / 2 of the prompt's, for two read them together, and 1.
  assert found["read"] == 16 * 8 * 2.5


def test_sharing_saves_prefills_and_pivots_save_turns():
  config = predict.MODELS["qwen3-30b-a3b"]
  sizes = counts.Sizes(pivots=64, group=16, prompt=32768, action=4096)
  shared, each, e2e, e2e_each = predict.rollouts(
    config, sizes, cards.named("64xh100")
  )
  assert shared["prefilled"] * 16 == each["prefilled"]
  assert shared["seconds"] < each["seconds"]
  assert e2e["seconds"] < e2e_each["seconds"]
  # The paper, figure 1: about 133 K turns against 542 K.
  assert shared["turns_to_equal"] == 133120
  assert e2e["turns_to_equal"] == pytest.approx(542e3, rel=0.001)
