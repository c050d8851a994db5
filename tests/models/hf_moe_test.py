"""Checkpoints with experts: read and written one array after the other."""

import json
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pivotrl_jax import errors
from pivotrl_jax.engines import policy
from pivotrl_jax.models import hf

_CONFIG = {
  "architectures": ["Qwen3MoeForCausalLM"],
  "vocab_size": 2048,
  "hidden_size": 32,
  "intermediate_size": 24,
  "num_hidden_layers": 4,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 8,
  "rope_theta": 1e6,
  "tie_word_embeddings": False,
  "num_experts": 6,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 16,
  "norm_topk_prob": True,
  "decoder_sparse_step": 1,
  "mlp_only_layers": [1],
}
# Wide, so that Python's own objects are nothing beside the arrays.
_WIDE = _CONFIG | {
  "hidden_size": 128, "moe_intermediate_size": 256, "num_hidden_layers": 8,
}  # fmt: skip


def _tensors(config):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(ml_dtypes.bfloat16)
    for name, _, _, shape in hf.name_map(config)
  }


def _write(path, config):
  path.mkdir()
  for name in (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
  ):  # fmt: skip
    shutil.copyfile(policy.MINI / name, path / name)
  (path / "config.json").write_text(json.dumps(config))
  tensors = _tensors(config)
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  return tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp("moe") / "model"
  _write(path, _CONFIG)
  return path


def test_experts_are_stacked_in_their_order(checkpoint):
  config, want = hf.read_config(checkpoint), _tensors(_CONFIG)
  params = hf.load_params(checkpoint, config)
  assert params["layers_0"]["mlp"]["experts"]["up_proj"].shape == (6, 32, 16)
  for name, keys, transposed, _ in hf.name_map(config):
    got = hf.at(params, keys)
    np.testing.assert_array_equal(
      got.T if transposed else got, want[name], err_msg=name
    )
  assert "experts" not in params["layers_1"]["mlp"]


def test_one_array_is_held_at_a_time(tmp_path):
  """Neither reading nor writing ever holds the model."""
  path = tmp_path / "wide"
  sizes = [t.size for t in _write(path, _WIDE).values()]
  config = hf.read_config(path)
  stack = 6 * 128 * 256
  assert sum(sizes) > 6 * stack
  widest = []

  def put(_, array):
    widest.append(array.size)
    return np.broadcast_to(np.float32(0), array.shape)  # Holds nothing.

  peak, params = _peak(lambda: hf.load_params(path, config, put=put))
  assert max(widest) == max(stack, 2048 * 128)
  # A stack in bfloat16, and of one tensor its bytes and their float32.
  assert peak < 2 * max(widest) + 8 * 2048 * 128 + 1e6
  assert 2 * sum(sizes) > 1.5 * peak
  shard = 8 * stack
  peak, _ = _peak(
    lambda: hf.save(
      tmp_path / "export", params, config, path, shard_bytes=shard
    )
  )
  # A file's arrays, their bytes, and the stack that they are cut from.
  assert peak < 2 * shard + 8 * stack + 1e6
  assert 4 * sum(sizes) > 1.5 * peak
  files = sorted((tmp_path / "export").glob("*.safetensors"))
  assert len(files) > 4
  assert all(file.stat().st_size < shard + 1e5 for file in files)
  assert hf.read_config(tmp_path / "export").items() >= config.items()
  hf.check_tensors(tmp_path / "export", config)


def _peak(function):
  tracemalloc.start()
  try:
    found = function()
    return tracemalloc.get_traced_memory()[1], found
  finally:
    tracemalloc.stop()


def test_a_policy_comes_back_from_its_shards(checkpoint, tmp_path):
  loaded = policy.load(checkpoint)
  assert {str(x.dtype) for x in jax.tree.leaves(loaded.params)} == {"float32"}
  hf.save(
    tmp_path / "export", loaded.params, loaded.hf_config, checkpoint,
    shard_bytes=20_000,
  )  # fmt: skip
  again = policy.load(tmp_path / "export")
  assert again.version == loaded.version
  index = json.loads(
    (tmp_path / "export" / "model.safetensors.index.json").read_text()
  )
  assert "model.layers.3.mlp.experts.5.gate_proj.weight" in index["weight_map"]
  assert "model.layers.0.mlp.gate.weight" in index["weight_map"]
  # Of single tensors of 256 KiB no file can be smaller.
  sizes = [
    f.stat().st_size for f in (tmp_path / "export").glob("*.safetensors")
  ]
  assert sorted(sizes)[-3] < 22_000


_REFUSED = {
  "no experts": ({"num_experts": ...}, "num_experts None; expected an int"),
  "text": ({"num_experts_per_tok": "2"}, "num_experts_per_tok '2'; expected"),
  "too many": ({"num_experts_per_tok": 7}, "7; expected at most num_experts 6"),
  "width": ({"moe_intermediate_size": 0}, "moe_intermediate_size 0; expected"),
  "norm": ({"norm_topk_prob": ...}, "norm_topk_prob None; expected true or"),
  "step": ({"decoder_sparse_step": 0}, "decoder_sparse_step 0; expected"),
  "layers": ({"mlp_only_layers": [4]}, "mlp_only_layers .4.; expected a list"),
  "all dense": ({"decoder_sparse_step": 9}, "expected a layer with experts"),
  "two counts": ({"num_local_experts": 8}, "num_local_experts 8; expected"),
  "dense": (
    {"architectures": ["Qwen3ForCausalLM"]},
    "no tensor model.layers.0.mlp.gate_proj.weight; expected",
  ),
  "other": ({"architectures": ["MixtralForCausalLM"]}, "'Qwen3MoeForCausalLM'"),
  "shape": ({"moe_intermediate_size": 8}, "has shape .16, 32.; expected .8"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_refused_in_one_line(checkpoint, tmp_path, name):
  changes, reason = _REFUSED[name]
  path = tmp_path / "model"
  shutil.copytree(checkpoint, path)
  config = {k: v for k, v in (_CONFIG | changes).items() if v is not ...}
  (path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=reason) as error:
    hf.check_tensors(path, hf.read_config(path))
  assert "\n" not in str(error.value)


def test_as_transformers_5_names_the_count(checkpoint, tmp_path):
  """It writes another name; what is exported has both."""
  path = tmp_path / "model"
  shutil.copytree(checkpoint, path)
  config = {k: v for k, v in _CONFIG.items() if k != "num_experts"}
  config |= {"num_local_experts": 6, "mlp_only_layers": None}
  (path / "config.json").write_text(json.dumps(config))
  assert hf.read_config(path)["num_experts"] == 6
