"""Hugging Face directories <-> parameters, by an explicit name map."""

from collections.abc import Iterator
import json
import os
import pathlib
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from pivotrl_jax import errors

ARCHITECTURE = "Qwen3ForCausalLM"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TEMPLATE = "chat_template.jinja"
_NAMED_TEMPLATES = "additional_chat_templates"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    _TEMPLATE, "chat_template.json", "generation_config.json",
)  # fmt: skip
_COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
# Stored types of tensors, as safetensors names them.
_STORED = ("F64", "F32", "F16", "BF16")
_DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# What stands in a directory that holds no model of its own, or in a form
# that we do not read; and what to do about it.
_OTHER_FORMS = {
  "adapter_config.json": "an adapter; merge it into its base model",
  "pytorch_model.bin": "save it with safe_serialization=True",
  "pytorch_model.bin.index.json": "save it with safe_serialization=True",
}
_POINTER = b"version https://git-lfs"


def read_config(path: pathlib.Path | str) -> dict[str, Any]:
  """config.json of a directory, checked to be a Qwen3 that we implement.

  Raises:
    InputError: no or broken config.json, another architecture, or a feature
      that changes what the model computes and is not implemented.
  """
  path = pathlib.Path(path)
  file = path / "config.json"
  if not file.exists():
    raise errors.InputError(
      f"{path}: no config.json{_instead(path)}; expected a Hugging Face"
      " directory"
    )
  values = _read_json(file)
  found = values.get("architectures")
  if found != [ARCHITECTURE]:
    raise errors.InputError(
      f"{file}: architectures {found!r}; expected ['{ARCHITECTURE}']"
    )
  for key in _COUNTS:
    value = values.get(key)
    if type(value) is not int or value < 1:
      raise errors.InputError(
        f"{file}: {key} {value!r}; expected an integer above 0"
      )
  for key, value in _features(values, file).items():
    wanted = _SUPPORTED[key]
    if value != wanted:
      raise errors.InputError(f"{file}: {key} {value!r}; expected {wanted!r}")
  if values["head_dim"] % 2:
    raise errors.InputError(
      f"{file}: head_dim {values['head_dim']}; expected an even number, of"
      " which halves are rotated"
    )
  return values


# Features that change what a model computes -> the value we implement.
_SUPPORTED = {
  "use_sliding_window": False,
  "attention_bias": False,
  "rope type": "default",
  "partial_rotary_factor": 1.0,
  "layer_types": ["full_attention"],
  "hidden_act": "silu",
  "quantization_config": None,
}


def _features(values, file):
  """The values of a config.json, or their defaults, of `_SUPPORTED`."""
  ropes = [values.get("rope_parameters"), values.get("rope_scaling")]
  if not all(isinstance(rope, dict | None) for rope in ropes):
    raise errors.InputError(
      f"{file}: rope_parameters, rope_scaling {ropes}; expected an object or"
      " null"
    )
  rope = ropes[0] or ropes[1] or {}
  partial = rope.get(
    "partial_rotary_factor", values.get("partial_rotary_factor", 1.0)
  )
  for key, value in (
    ("rope_theta", rope.get("rope_theta", values.get("rope_theta"))),
    ("rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
  ):
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise errors.InputError(f"{file}: {key} {value!r}; expected a number")
  layers = values.get("layer_types") or ["full_attention"]
  layers = layers if isinstance(layers, list) else [layers]
  distinct = sorted({str(layer) for layer in layers})
  return {
    "use_sliding_window": values.get("use_sliding_window") or False,
    "attention_bias": values.get("attention_bias") or False,
    "rope type": rope.get("rope_type", rope.get("type", "default")),
    "partial_rotary_factor": partial,
    "layer_types": distinct,
    "hidden_act": values.get("hidden_act", "silu"),
    "quantization_config": values.get("quantization_config"),
  }


def check_tensors(path: pathlib.Path | str, config: dict[str, Any]) -> None:
  """InputError where the files' headers are not those of the model.

  Reads no weights: names, shapes and types only.
  """
  for _ in _places(pathlib.Path(path), config):
    pass


def load_params(path: pathlib.Path | str, config: dict[str, Any]) -> Any:
  """Parameters as a nested dict of numpy arrays, in their stored dtype.

  Args:
    path: a directory with model.safetensors, or shards and their index.
    config: of `read_config`.

  Raises:
    InputError: a tensor is missing, unexpected, of another shape or type, or
      holds what is no finite number.
  """
  params: dict[str, Any] = {}
  for file, name, keys, transposed in _places(pathlib.Path(path), config):
    tensor = _read_tensor(file, name)
    if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
      raise errors.InputError(
        f"{file}: {name} holds NaN or infinity; expected finite weights"
      )
    node = params
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = tensor.T if transposed else tensor
  return params


def _places(path, config):
  """Yields (file, name, our path, whether transposed), all checked."""
  files = _tensor_files(path)
  for name, keys, transposed, shape in name_map(config):
    if name not in files:
      raise errors.InputError(
        f"{path}: no tensor {name}; expected one of shape {shape}"
      )
    file = files.pop(name)
    _check_header(path, file, name, shape)
    yield file, name, keys, transposed
  # Some exporters store the tied head a second time.
  if config.get("tie_word_embeddings"):
    files.pop("lm_head.weight", None)
  if files:
    raise errors.InputError(
      f"{path}: unexpected tensor {min(files)}; expected only those of"
      f" {ARCHITECTURE}"
    )


def _check_header(path, file, name, shape):
  with safetensors.safe_open(file, framework="np") as tensors:
    header = tensors.get_slice(name)
    found, stored = tuple(header.get_shape()), header.get_dtype()
  if found != shape:
    raise errors.InputError(
      f"{path}: {name} has shape {found}; expected {shape}"
    )
  if stored not in _STORED:
    raise errors.InputError(
      f"{path}: {name} is stored as {stored}; expected one of"
      f" {', '.join(_STORED)}"
    )


def save(
  path: pathlib.Path | str,
  params: Any,
  config: dict[str, Any],
  tokenizer_path: pathlib.Path | str,
  *,
  chat_template: str | None = None,
  dtype: str = "float32",
  shard_bytes: int = 4 << 30,
) -> None:
  """Writes a directory that transformers and SGLang load as it is.

  Written under a temporary name and renamed; an old directory is replaced.

  Args:
    path: where.
    params: nested parameters, as `load_params` returns them.
    config: of config.json.
    tokenizer_path: directory whose tokenizer, chat template and generation
      config are copied as they are.
    chat_template: in place of the copied one.
    dtype: "float32" or "bfloat16", of the stored tensors.
    shard_bytes: most bytes of one file.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for name in _TOKENIZER_FILES:
    source = pathlib.Path(tokenizer_path) / name
    if source.exists():
      shutil.copyfile(source, temporary / name)
  if (named := pathlib.Path(tokenizer_path) / _NAMED_TEMPLATES).is_dir():
    shutil.copytree(named, temporary / _NAMED_TEMPLATES)
  if chat_template is not None:
    (temporary / _TEMPLATE).write_text(chat_template, encoding="utf-8")
  # transformers 5 writes "dtype", 4 "torch_dtype": both read the latter.
  stored = {k: v for k, v in config.items() if k != "dtype"}
  stored |= {"torch_dtype": dtype}
  (temporary / "config.json").write_text(json.dumps(stored, indent=2) + "\n")
  _write_tensors(temporary, _tensors(params, config, dtype), shard_bytes)
  for weights in temporary.glob("*.safetensors"):  # Written owner-only.
    shutil.copymode(temporary / "config.json", weights)
  old = path.with_name(f".{path.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.rename(path, old)
  os.rename(temporary, path)
  shutil.rmtree(old, ignore_errors=True)


def name_map(
  config: dict[str, Any],
) -> Iterator[tuple[str, tuple[str, ...], bool, tuple[int, ...]]]:
  """(HF name, our path, whether transposed, HF shape) of every tensor."""
  d, f = config["hidden_size"], config["intermediate_size"]
  heads = config["num_attention_heads"]
  kv = config.get("num_key_value_heads", heads)
  c = config.get("head_dim") or d // heads
  v = config["vocab_size"]
  yield ("model.embed_tokens.weight", ("embed_tokens", "embedding"), False,
         (v, d))  # fmt: skip
  matrices = {
    ("self_attn", "q_proj"): (heads * c, d),
    ("self_attn", "k_proj"): (kv * c, d),
    ("self_attn", "v_proj"): (kv * c, d),
    ("self_attn", "o_proj"): (d, heads * c),
    ("mlp", "gate_proj"): (f, d),
    ("mlp", "up_proj"): (f, d),
    ("mlp", "down_proj"): (d, f),
  }
  scales = {
    ("input_layernorm",): (d,),
    ("post_attention_layernorm",): (d,),
    ("self_attn", "q_norm"): (c,),
    ("self_attn", "k_norm"): (c,),
  }
  for i in range(config["num_hidden_layers"]):
    for keys, shape in matrices.items():
      name = f"model.layers.{i}.{'.'.join(keys)}.weight"
      yield name, (f"layers_{i}", *keys, "kernel"), True, shape
    for keys, shape in scales.items():
      name = f"model.layers.{i}.{'.'.join(keys)}.weight"
      yield name, (f"layers_{i}", *keys, "scale"), False, shape
  yield "model.norm.weight", ("norm", "scale"), False, (d,)
  if not config.get("tie_word_embeddings"):
    yield "lm_head.weight", ("lm_head", "kernel"), True, (v, d)


def _tensors(params, config, dtype):
  """HF name -> contiguous array, in the map's order."""
  tensors = {}
  for name, keys, transposed, _ in name_map(config):
    node = params
    for key in keys:
      node = node[key]
    array = np.asarray(node)
    array = array.T if transposed else array
    tensors[name] = np.ascontiguousarray(array.astype(_DTYPES[dtype]))
  return tensors


def _write_tensors(path, tensors, shard_bytes):
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for name, tensor in tensors.items():
    if shards[-1] and size + tensor.nbytes > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.nbytes
  meta = {"format": "pt"}
  if len(shards) == 1:
    safetensors.numpy.save_file(shards[0], path / _WEIGHTS, meta)
    return
  placed = {}
  for i, shard in enumerate(shards):
    file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
    safetensors.numpy.save_file(shard, path / file, meta)
    placed |= dict.fromkeys(shard, file)
  total = sum(t.nbytes for t in tensors.values())
  index = {"metadata": {"total_size": total}, "weight_map": placed}
  (path / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _tensor_files(path):
  """Tensor name -> the file that holds it."""
  if (path / _WEIGHTS).exists():
    return dict.fromkeys(_names(path / _WEIGHTS), path / _WEIGHTS)
  if not (path / _INDEX).exists():
    raise errors.InputError(
      f"{path}: no weights{_instead(path)}; expected {_WEIGHTS}"
    )
  placed = _read_json(path / _INDEX).get("weight_map")
  if not isinstance(placed, dict) or not all(
    isinstance(file, str) for file in placed.values()
  ):
    raise errors.InputError(
      f"{path / _INDEX}: no weight_map; expected one of tensor names to files"
    )
  for file in sorted(set(placed.values())):
    missing = {n for n, f in placed.items() if f == file} - set(
      _names(path / file)
    )
    if missing:
      raise errors.InputError(
        f"{path / file}: no tensor {min(missing)}, which {_INDEX} names"
      )
  return {name: path / file for name, file in placed.items()}


def _instead(path):
  """What there is of another form, in brackets; "" where there is none."""
  for name, advice in _OTHER_FORMS.items():
    if (path / name).exists():
      return f" ({name} is: {advice})"
  return ""


def _names(file):
  try:
    with open(file, "rb") as handle:
      pointer = handle.read(len(_POINTER)) == _POINTER
    if pointer:
      raise errors.InputError(
        f"{file}: a Git LFS pointer; expected the file itself (git lfs pull)"
      )
    with safetensors.safe_open(file, framework="np") as tensors:
      return list(tensors.keys())
  except (OSError, safetensors.SafetensorError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.InputError(
      f"{file}: {reason}; expected a whole safetensors file"
    ) from error


def _read_tensor(file, name):
  with safetensors.safe_open(file, framework="np") as tensors:
    return tensors.get_tensor(name)


def _read_json(file):
  try:
    value = json.loads(file.read_text(encoding="utf-8"))
  except OSError as error:
    raise errors.InputError(
      f"{file}: {error.strerror}; expected a file"
    ) from error
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f"{file}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise errors.InputError(f"{file}: expected a JSON object")
  return value
