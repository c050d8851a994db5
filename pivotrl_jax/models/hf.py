"""Hugging Face directories <-> parameters, by an explicit name map."""

from collections.abc import Callable, Iterator
import functools
import itertools
import json
import math
import os
import pathlib
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from pivotrl_jax import errors
from pivotrl_jax.models import qwen3

DENSE, SPARSE = qwen3.DENSE, qwen3.SPARSE
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
_EXPERT_COUNTS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "decoder_sparse_step",
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
  if found not in ([DENSE], [SPARSE]):
    raise errors.InputError(
      f"{file}: architectures {found!r}; expected ['{DENSE}'] or ['{SPARSE}']"
    )
  counts = _COUNTS
  if found == [SPARSE]:
    # As transformers 5 writes it; 4 and SGLang read the former alone.
    local = values.get("num_local_experts")
    if local != values.setdefault("num_experts", local) and local is not None:
      raise errors.InputError(
        f"{file}: num_local_experts {local!r}; expected num_experts"
        f" {values['num_experts']!r}"
      )
    values.setdefault("decoder_sparse_step", 1)
    counts += _EXPERT_COUNTS
  for key in counts:
    value = values.get(key)
    if type(value) is not int or value < 1:
      raise errors.InputError(
        f"{file}: {key} {value!r}; expected an integer above 0"
      )
  if found == [SPARSE]:
    _check_experts(values, file)
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


def _check_experts(values, file):
  """What `_EXPERT_COUNTS` leave to check of a mixture of experts."""
  if type(values.get("norm_topk_prob")) is not bool:
    raise errors.InputError(
      f"{file}: norm_topk_prob {values.get('norm_topk_prob')!r}; expected true"
      " or false"
    )
  dense, count = values.get("mlp_only_layers"), values["num_hidden_layers"]
  if dense is not None and not (
    isinstance(dense, list)
    and all(type(i) is int and 0 <= i < count for i in dense)
  ):
    raise errors.InputError(
      f"{file}: mlp_only_layers {dense!r}; expected a list of layers from 0 to"
      f" {count - 1}"
    )
  if not qwen3.config_from_hf(values).sparse_layers:
    raise errors.InputError(
      f"{file}: mlp_only_layers {dense!r} and decoder_sparse_step"
      f" {values['decoder_sparse_step']}; expected a layer with experts"
    )


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


def load_params(
  path: pathlib.Path | str,
  config: dict[str, Any],
  *,
  put: Callable[[tuple[str, ...], np.ndarray], Any] = lambda _, array: array,
) -> Any:
  """Parameters as a nested dict of arrays, read one after the other.

  Args:
    path: a directory with model.safetensors, or shards and their index.
    config: of `read_config`.
    put: (our path, array in its stored dtype) -> what stands in the result,
      such as an array on a device. Beside what it returns, no more than one
      array is held here at a time.

  Raises:
    InputError: a tensor is missing, unexpected, of another shape or type, or
      holds what is no finite number.
  """
  params: dict[str, Any] = {}
  by_array = itertools.groupby(
    _places(pathlib.Path(path), config), lambda place: _array_path(place[2])
  )
  for keys, places in by_array:
    node = params
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = put(keys, _read_array(list(places), config))
  return params


def at(tree: Any, keys: tuple[str | int, ...]) -> Any:
  """What stands at a path of `name_map`, or above it, in a tree."""
  return functools.reduce(lambda node, key: node[key], keys, tree)


def _array_path(keys):
  """The path of the array that a tensor is, or is one of a stack of."""
  return keys[:-1] if isinstance(keys[-1], int) else keys


def _read_array(places, config):
  """A tensor, or the stack of an array's."""
  if not isinstance(places[0][2][-1], int):
    ((file, name, _, transposed),) = places
    return _read_tensor(file, name, transposed)
  stack = None
  for file, name, keys, transposed in places:
    tensor = _read_tensor(file, name, transposed)
    if stack is None:
      stack = np.empty((config["num_experts"], *tensor.shape), tensor.dtype)
    if tensor.dtype != stack.dtype:  # Some may be stored wider than others.
      stack = stack.astype(np.float32, copy=False)
    stack[keys[-1]] = tensor
  return stack


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
      f" {config['architectures'][0]}"
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
  fetch: Callable[[Any], np.ndarray] = np.asarray,
  writes: bool = True,
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
    shard_bytes: most bytes of one file; parameters are fetched for one file
      at a time.
    fetch: an array of `params` -> the whole of it on this host.
    writes: False: only fetches, as another process does that writes.
  """
  if not writes:
    for shard in _shards(config, dtype, shard_bytes):
      for _ in _tensors(params, shard, dtype, fetch):
        pass
    return
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
  _write_tensors(
    temporary,
    [
      functools.partial(_tensors, params, shard, dtype, fetch)
      for shard in _shards(config, dtype, shard_bytes)
    ],
  )
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
) -> Iterator[tuple[str, tuple[str | int, ...], bool, tuple[int, ...]]]:
  """(HF name, our path, whether transposed, HF shape) of every tensor.

  Experts are tensors of their own there and stacks here: their paths end in
  the place in the stack. Those of one stack follow each other.
  """
  d, c = config["hidden_size"], config["head_dim"]
  heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
  v = config["vocab_size"]
  yield ("model.embed_tokens.weight", ("embed_tokens", "embedding"), False,
         (v, d))  # fmt: skip
  matrices = {
    ("self_attn", "q_proj"): (heads * c, d),
    ("self_attn", "k_proj"): (kv * c, d),
    ("self_attn", "v_proj"): (kv * c, d),
    ("self_attn", "o_proj"): (d, heads * c),
  }
  scales = {
    ("input_layernorm",): (d,),
    ("post_attention_layernorm",): (d,),
    ("self_attn", "q_norm"): (c,),
    ("self_attn", "k_norm"): (c,),
  }
  sparse = qwen3.config_from_hf(config).sparse_layers
  for i in range(config["num_hidden_layers"]):
    layer, f = f"layers_{i}", config["intermediate_size"]
    of_layer = matrices
    if i in sparse:
      of_layer = matrices | {("mlp", "gate"): (config["num_experts"], d)}
    else:
      of_layer = matrices | _swiglu(("mlp",), d, f)
    for keys, shape in of_layer.items():
      yield _name(i, keys), (layer, *keys, "kernel"), True, shape
    if i in sparse:
      f = config["moe_intermediate_size"]
      for (*_, kind), shape in _swiglu((), d, f).items():
        for e in range(config["num_experts"]):
          name = _name(i, ("mlp", "experts", str(e), kind))
          yield name, (layer, "mlp", "experts", kind, e), True, shape
    for keys, shape in scales.items():
      yield _name(i, keys), (layer, *keys, "scale"), False, shape
  yield "model.norm.weight", ("norm", "scale"), False, (d,)
  if not config.get("tie_word_embeddings"):
    yield "lm_head.weight", ("lm_head", "kernel"), True, (v, d)


def _swiglu(place, d, f):
  shapes = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
  return {(*place, kind): shape for kind, shape in shapes.items()}


def _name(layer, keys):
  return f"model.layers.{layer}.{'.'.join(keys)}.weight"


def _tensors(params, names, dtype, fetch):
  """HF name -> contiguous array of those named; one is fetched at a time."""
  held, array = None, None
  for name, keys, transposed, _ in names:
    if _array_path(keys) != held:
      held = _array_path(keys)
      array = fetch(at(params, held))
    tensor = array[keys[-1]] if isinstance(keys[-1], int) else array
    tensor = tensor.T if transposed else tensor
    yield name, np.ascontiguousarray(tensor.astype(_DTYPES[dtype]))


def _shards(config, dtype, shard_bytes):
  """The places of `name_map` by files of at most `shard_bytes`, or of one."""
  shards: list[list[Any]] = [[]]
  size = 0
  for place in name_map(config):
    added = math.prod(place[-1]) * _DTYPES[dtype].itemsize
    if shards[-1] and size + added > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(place)
    size += added
  return shards


def _write_tensors(path, shards):
  """One file after the other, each of what a function yields."""
  placed, total = {}, 0
  for i, tensors_of in enumerate(shards):
    file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
    tensors = dict(tensors_of())
    safetensors.numpy.save_file(
      tensors, path / (file if len(shards) > 1 else _WEIGHTS), {"format": "pt"}
    )
    placed |= dict.fromkeys(tensors, file)
    total += sum(tensor.nbytes for tensor in tensors.values())
  if len(shards) > 1:
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


def _read_tensor(file, name, transposed):
  with safetensors.safe_open(file, framework="np") as tensors:
    tensor = tensors.get_tensor(name)
  if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
    raise errors.InputError(
      f"{file}: {name} holds NaN or infinity; expected finite weights"
    )
  return tensor.T if transposed else tensor


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
