"""Checkpoint directories as users have them, off by one thing each."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import policy
from pivotrl_jax.models import hf

_CONFIG = {
  "architectures": ["Qwen3ForCausalLM"],
  "vocab_size": 2048,
  "hidden_size": 8,
  "intermediate_size": 6,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 4,
  "rope_theta": 1e6,
  "tie_word_embeddings": False,
}
_HEAD = "lm_head.weight"
_SHARD, _INDEX = "model-1.safetensors", "model.safetensors.index.json"


def _tensors(config=None):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, _, _, shape in hf.name_map(config or _CONFIG)
  }


@pytest.fixture
def checkpoint(tmp_path):
  """A whole one, with the mini policy's tokenizer."""
  path = tmp_path / "model"
  path.mkdir()
  for name in (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
  ):  # fmt: skip
    shutil.copyfile(policy.MINI / name, path / name)
  (path / "config.json").write_text(json.dumps(_CONFIG))
  safetensors.numpy.save_file(_tensors(), path / "model.safetensors")
  return path


def _config(**values):
  def change(path):
    kept = {k: v for k, v in (_CONFIG | values).items() if v is not ...}
    (path / "config.json").write_text(json.dumps(kept))

  return change


def _weights(change):
  """`change` of the tensors, written again."""

  def write(path):
    tensors = _tensors()
    change(tensors)
    safetensors.numpy.save_file(tensors, path / "model.safetensors")

  return write


def _cast(dtype):
  return _weights(lambda x: x.update({_HEAD: x[_HEAD].astype(dtype)}))


def _set(value):
  return _weights(lambda x: np.put(x[_HEAD], 3, value))


def _cut(path):
  file = path / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-9])


def _only(name, content=b""):
  def change(path):
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(content)

  return change


def _sharded(placed):
  def change(path):
    (path / "model.safetensors").rename(path / _SHARD)
    names = {name: _SHARD for name in _tensors()}
    index = {"weight_map": placed(names)}
    (path / _INDEX).write_text(json.dumps(index))

  return change


def _adapter(path):
  for file in path.iterdir():
    file.unlink()
  (path / "adapter_config.json").write_text("{}")


def _tokens(path):
  state = json.loads((path / "tokenizer.json").read_text())
  token = state["added_tokens"][-1] | {"id": 2048, "content": "<|new|>"}
  state["added_tokens"].append(token)
  (path / "tokenizer.json").write_text(json.dumps(state))


def _write(name, text):
  return lambda path: (path / name).write_text(text)


_ROPE = {"rope_type": "yarn", "factor": 4.0}
_SEEN_BEFORE_WORK = {
  "no config": (lambda p: (p / "config.json").unlink(), "no config.json;"),
  "adapter": (_adapter, "adapter_config.json is: an adapter; merge"),
  "broken config": (_write("config.json", "{"), "config.json: not JSON"),
  "list": (_write("config.json", "[]"), "expected a JSON object"),
  "architecture": (
    _config(architectures=["LlamaForCausalLM"]),
    "'LlamaForCausalLM'.; expected .'Qwen3ForCausalLM'",
  ),
  "no architecture": (_config(architectures=...), "architectures None;"),
  "odd architecture": (_config(architectures=5), "architectures 5; expected"),
  "missing key": (_config(hidden_size=...), "hidden_size None; expected an"),
  "text": (_config(vocab_size="2048"), "vocab_size '2048'; expected an int"),
  "bool": (_config(num_hidden_layers=True), "num_hidden_layers True; exp"),
  "zero": (_config(num_hidden_layers=0), "num_hidden_layers 0; expected"),
  "kv": (_config(num_key_value_heads=0), "num_key_value_heads 0; expected"),
  "heads": (_config(num_attention_heads=3, num_key_value_heads=2), "multiple"),
  "no width": (_config(head_dim=None), "head_dim None; expected an integer"),
  "no theta": (_config(rope_theta=...), "rope_theta None; expected a number"),
  "odd width": (_config(head_dim=3), "head_dim 3; expected an even"),
  "theta": (_config(rope_theta="1e6"), "rope_theta '1e6'; expected a num"),
  "epsilon": (_config(rms_norm_eps=None), "rms_norm_eps None; expected"),
  "yarn": (_config(rope_scaling=_ROPE), "rope type 'yarn'; expected 'def"),
  "yarn, new": (_config(rope_parameters=_ROPE), "rope type 'yarn'; expected"),
  "rope text": (_config(rope_scaling="linear"), "'linear'.; expected an obj"),
  "partial": (_config(partial_rotary_factor=0.5), "factor 0.5; expected 1"),
  "window": (_config(use_sliding_window=True), "use_sliding_window True;"),
  "layers": (_config(layer_types=["sliding_attention"]), "layer_types .'sl"),
  "bias": (_config(attention_bias=True), "attention_bias True; expected"),
  "activation": (_config(hidden_act="gelu"), "hidden_act 'gelu'; expected"),
  "quantized": (
    _config(quantization_config={"quant_method": "fp8"}),
    "quantization_config .*fp8.*; expected None",
  ),
  "no weights": (_only("x"), "no weights; expected model.safetensors"),
  "torch": (_only("pytorch_model.bin"), "pytorch_model.bin is: save it with"),
  "pointer": (
    _write("model.safetensors", "version https://git-lfs.github.com/spec/v1"),
    "a Git LFS pointer; expected the file itself",
  ),
  "cut": (_cut, "expected a whole safetensors file"),
  "empty": (_write("model.safetensors", ""), "expected a whole safetensors"),
  "missing": (_weights(lambda x: x.pop(_HEAD)), f"no tensor {_HEAD}; expect"),
  "extra": (
    _weights(lambda x: x.update(spare=x[_HEAD])),
    "unexpected tensor spare; expected only those",
  ),
  "shape": (_config(intermediate_size=7), "has shape .6, 8.; expected .7, 8"),
  "integers": (_cast(np.int8), "stored as I8; expected one of F64, F32"),
  "float 8": (_cast(ml_dtypes.float8_e4m3fn), "stored as F8_E4M3; expected"),
  "broken index": (
    lambda p: (_only(_INDEX, b"{")(p)), "index.json: not JSON",
  ),
  "no map": (_only(_INDEX, b"{}"), "no weight_map; expected one"),
  "odd map": (_sharded(lambda x: x | {_HEAD: 3}), "no weight_map; expected"),
  "no shard": (
    _sharded(lambda x: x | {_HEAD: "model-2.safetensors"}),
    "model-2.safetensors: No such file or directory; expected",
  ),
  "not in shard": (
    _sharded(lambda x: x | {"spare": _SHARD}), "no tensor spare, which",
  ),
  "tokens": (_tokens, "ids up to 2048; expected them below vocab_size 2048"),
  "stop": (
    _write("generation_config.json", '{"eos_token_id": [2, 2048]}'),
    "eos_token_id 2048; expected it below vocab_size 2048",
  ),
  "template": (
    _write("chat_template.jinja", "{{ raise_exception('No tools') }}"),
    "No tools; expected a template of messages with tool calls",
  ),
}  # fmt: skip


def _run_config(path):

  config = swe.get_config("tiny")
  config.model.path = str(path)
  return config


@pytest.mark.parametrize("name", _SEEN_BEFORE_WORK)
def test_seen_before_any_work(checkpoint, name):
  change, reason = _SEEN_BEFORE_WORK[name]
  change(checkpoint)
  with pytest.raises(errors.InputError, match=reason) as error:
    policy.check(_run_config(checkpoint))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_one_line(checkpoint, value):
  policy.check(_run_config(checkpoint))
  _set(value)(checkpoint)
  with pytest.raises(errors.InputError, match=f"{_HEAD} holds NaN or inf"):
    policy.load(checkpoint)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_read(checkpoint, dtype):
  _cast(dtype)(checkpoint)
  policy.check(_run_config(checkpoint))
  params = policy.load(checkpoint).params
  np.testing.assert_array_equal(
    params["lm_head"]["kernel"],
    _tensors()[_HEAD].astype(dtype).astype(np.float32).T,
  )


@pytest.mark.parametrize(
  "values",
  [
    {"rope_scaling": None, "rope_theta": 1e6, "sliding_window": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    {"layer_types": ["full_attention"], "use_sliding_window": False},
    {"torch_dtype": "bfloat16", "unknown": 1},
  ],
)
def test_configs_as_both_transformers_write_them(checkpoint, values):
  _config(**values)(checkpoint)
  assert hf.read_config(checkpoint).items() >= values.items()


def test_shards_and_a_tied_head_stored_twice_are_read(checkpoint):
  _sharded(lambda names: names)(checkpoint)
  tied = _CONFIG | {"tie_word_embeddings": True}
  assert "lm_head" not in hf.load_params(checkpoint, tied)
  assert "lm_head" in hf.load_params(checkpoint, _CONFIG)


def test_a_foreign_tokenizer_is_exported_as_it_is(checkpoint, tmp_path):
  """Also a file that we do not read, and with a class that 5 alone knows."""
  for name in ("special_tokens_map.json", "vocab.json", "tokenizer.model"):
    (checkpoint / name).write_bytes(b"{ }\r\n")
  named = checkpoint / "additional_chat_templates" / "rag.jinja"
  named.parent.mkdir()
  named.write_text("{{ messages }}")
  (checkpoint / "tokenizer_config.json").write_text(
    '{"tokenizer_class":"TokenizersBackend",  "eos_token": "<|im_end|>"}'
  )
  loaded = policy.load(checkpoint)
  policy.save(tmp_path / "export", loaded, loaded.params)
  made = {"config.json", "model.safetensors"}
  for file in filter(pathlib.Path.is_file, checkpoint.rglob("*")):
    exported = tmp_path / "export" / file.relative_to(checkpoint)
    if file.name not in made:
      assert exported.read_bytes() == file.read_bytes()
  again = policy.load(tmp_path / "export")
  assert again.version == loaded.version


def test_a_given_template_is_exported(checkpoint, tmp_path):
  template = tmp_path / "t.jinja"
  template.write_text(
    (policy.MINI / "chat_template.jinja").read_text().replace("Tools", "Calls")
  )
  config = _run_config(checkpoint)
  config.model.chat_template = str(template)
  loaded = policy.load(checkpoint, config)
  policy.save(tmp_path / "export", loaded, loaded.params)
  found = tokenizer_lib.load(tmp_path / "export")
  assert found.hf.chat_template == template.read_text()
