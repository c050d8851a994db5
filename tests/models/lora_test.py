"""Adapters: what they add, and what PEFT makes of them."""

import json
import os
import subprocess

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import lora
from pivotrl_jax.models import peft
from pivotrl_jax.models import qwen3

SHAPE = {
  "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
  "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
  "tie_word_embeddings": True, "max_position_embeddings": 64,
}  # fmt: skip
CONFIG = qwen3.config_from_hf(SHAPE)


@pytest.fixture(scope="module")
def params():
  return nn.unbox(qwen3.init_params(CONFIG, jax.random.key(0)))


def _adapters(params, targets=("q_proj", "down_proj"), **options):
  """Adapters whose B is no longer zero."""
  found = lora.init(params, rank=3, targets=targets, seed=0, **options)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jax.random.normal(
        jax.random.key(len(jax.tree_util.keystr(path))), x.shape
      )
      if path[-1].key == lora.B
      else x
    ),
    found,
  )


def test_golden():
  # scale 2, A B = [1, 0]^T [10, 1] = [[10, 1], [0, 0]].
  base = lora.Base(
    {"a": {"q_proj": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}},
     "norm": {"scale": jnp.ones(2)}}, 2.0,
  )  # fmt: skip
  adapters = {
    "a": {"q_proj": {lora.A: jnp.array([[1.0], [0.0]]),
                     lora.B: jnp.array([[10.0, 1.0]])}}
  }  # fmt: skip
  merged = lora.merge(base, adapters)
  kernel = merged["a"]["q_proj"]["kernel"]
  np.testing.assert_array_equal(kernel, [[21.0, 4.0], [3.0, 4.0]])
  assert merged["norm"] is base.params["norm"]
  joined = lora.join(base, adapters)["a"]["q_proj"]
  np.testing.assert_array_equal(joined[lora.B], [[20.0, 2.0]])
  assert joined["kernel"] is base.params["a"]["q_proj"]["kernel"]
  assert lora.join(None, adapters) is lora.merge(None, adapters) is adapters


def test_new_adapters_stand_where_they_should_and_change_nothing(params):
  adapters = lora.init(params, rank=3, targets=lora.TARGETS, seed=1)
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters)
  }
  assert len(leaves) == 2 * 7 * 2
  down = leaves["layers_1/mlp/down_proj/lora_a"]
  assert down.shape == (48, 3) and 0.1 < abs(down).max() <= 48**-0.5
  assert leaves["layers_1/mlp/down_proj/lora_b"].shape == (3, 32)
  assert (
    leaves["layers_0/self_attn/q_proj/lora_a"][:2, 0] != down[:2, 0]
  ).all()
  base = lora.Base(params, 0.5)
  chex.assert_trees_all_equal(lora.merge(base, adapters), params)
  chex.assert_trees_all_equal(
    _hidden(lora.join(base, adapters)), _hidden(params)
  )


def _hidden(params):
  tokens = jnp.arange(12).reshape(1, 12)
  ends, depths = jnp.full((1, 12), 12), jnp.arange(12)[None]
  layout = qwen3.Layout(ends, depths, jnp.full((1, 12), 11), ends, depths + 12)
  model = qwen3.Qwen3(CONFIG, attention="dense")
  return model.apply({"params": params}, tokens, tokens + 9, layout, reach=11)


def test_merged_matrices_do_what_joined_ones_do(params):
  base, adapters = lora.Base(params, 0.7), _adapters(params)
  joined = _hidden(lora.join(base, adapters))
  assert abs(joined - _hidden(params)).max() > 0.1
  merged = _hidden(lora.merge(base, adapters))
  np.testing.assert_allclose(merged, joined, atol=1e-4)


def _written(path, params, adapters):
  peft.save(path, adapters, SHAPE, rank=3, alpha=6.0, base="/models/base")


def test_in_the_layout_of_peft(params, tmp_path):
  adapters = _adapters(params)
  for _ in range(2):  # What is there already gives way.
    _written(tmp_path / "adapter", params, adapters)
  files = sorted(p.name for p in (tmp_path / "adapter").iterdir())
  assert files == ["adapter_config.json", "adapter_model.safetensors"]
  tensors = safetensors.numpy.load_file(tmp_path / "adapter" / files[1])
  assert sorted(tensors) == [
    f"base_model.model.model.layers.{i}.{name}.{part}.weight"
    for i in range(2)
    for name in ("mlp.down_proj", "self_attn.q_proj")
    for part in ("lora_A", "lora_B")
  ]
  own = adapters["layers_1"]["mlp"]["down_proj"]
  stem = "base_model.model.model.layers.1.mlp.down_proj"
  np.testing.assert_array_equal(tensors[f"{stem}.lora_A.weight"], own[lora.A].T)
  np.testing.assert_array_equal(tensors[f"{stem}.lora_B.weight"], own[lora.B].T)
  values = json.loads((tmp_path / "adapter" / files[0]).read_text())
  assert values["target_modules"] == ["down_proj", "q_proj"]
  assert (values["r"], values["lora_alpha"]) == (3, 6.0)


LOGITS = """
import sys, peft, torch, transformers
base, adapter, merged = sys.argv[1:]
load = transformers.AutoModelForCausalLM.from_pretrained
ids = torch.arange(20)[None] * 7 % 64
with torch.no_grad():
  alone = load(base, dtype=torch.float32)(ids).logits
  want = load(merged, dtype=torch.float32)(ids).logits
  model = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32), adapter)
  got = model(ids).logits
  also = model.merge_and_unload()(ids).logits
assert (want - alone).abs().max() > 0.1
print(max((got - want).abs().max(), (also - want).abs().max()).item())
"""


@pytest.mark.skipif(
  "PIVOTRL_PEFT_PYTHON" not in os.environ, reason="set PIVOTRL_PEFT_PYTHON"
)
def test_peft_loads_them(params, tmp_path):
  adapters = _adapters(params)
  hf.save(tmp_path / "base", params, SHAPE, policy_lib.MINI)
  merged = lora.merge(lora.Base(params, 6.0 / 3), adapters)
  hf.save(tmp_path / "merged", merged, SHAPE, policy_lib.MINI)
  _written(tmp_path / "adapter", params, adapters)
  found = subprocess.run(
    [os.environ["PIVOTRL_PEFT_PYTHON"], "-c", LOGITS,
     *(tmp_path / name for name in ("base", "adapter", "merged"))],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert float(found.stdout) < 1e-4


def test_experts_have_none():
  sparse = qwen3.Config(
    64, 16, 48, 2, 2, 1, 8, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=8,
  )  # fmt: skip
  train = swe.get_config("tiny").train
  train.lora_rank, train.lora_targets = 4, "q_proj,up_proj"
  policy_lib._check_targets(train, "DIR", CONFIG)
  with pytest.raises(errors.InputError, match="lora_targets: up_proj; .* DIR"):
    policy_lib._check_targets(train, "DIR", sparse)
  adapters = lora.init(
    nn.unbox(qwen3.init_params(sparse, jax.random.key(0))),
    rank=2, targets=("q_proj", "o_proj"), seed=0,
  )  # fmt: skip
  assert set(adapters["layers_0"]) == {"self_attn"}
