"""Adapters -> a directory that PEFT (Hugging Face) loads as it is."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import safetensors.numpy

from pivotrl_jax.models import hf
from pivotrl_jax.models import lora


def save(
  path: pathlib.Path,
  adapters: Any,
  config: dict[str, Any],
  *,
  rank: int,
  alpha: float,
  base: str,
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors.

  Written under a temporary name and renamed; an old directory is replaced.

  Args:
    path: where.
    adapters: as `lora.init` makes them.
    config: of the base's config.json.
    rank: r.
    alpha: r times the scale of A B.
    base: the base model's directory or name.
  """
  tensors, targets = {}, set()
  for name, keys, *_ in hf.name_map(config):
    try:
      found = hf.at(adapters, keys[:-1])
    except KeyError:
      continue
    targets.add(keys[-2])
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    for part, ours in (("lora_A", lora.A), ("lora_B", lora.B)):
      array = np.asarray(found[ours], np.float32).T  # torch: [out, in].
      tensors[f"{stem}.{part}.weight"] = np.ascontiguousarray(array)
  temporary = path.with_name(f".{path.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  values = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": rank,
    "lora_alpha": alpha,
    "target_modules": sorted(targets),
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  (temporary / "adapter_config.json").write_text(
    json.dumps(values, indent=2) + "\n"
  )
  file = temporary / "adapter_model.safetensors"
  safetensors.numpy.save_file(tensors, file, {"format": "pt"})
  shutil.copymode(temporary / "adapter_config.json", file)
  shutil.rmtree(path, ignore_errors=True)
  temporary.rename(path)
