"""A policy on disk: tokenizer, shape and weights; and an engine on it."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3

MINI = pathlib.Path(__file__).parent.parent / "models" / "mini"
WARM_START = "warm_start"  # Folder of a workdir; see train/sft.py.


@dataclasses.dataclass(frozen=True)
class Policy:
  """What a Hugging Face directory holds.

  Attributes:
    path: the directory.
    tokenizer: with its chat template.
    hf_config: the fields of config.json.
    config: the model's shape.
    params: nested float32 arrays.
    version: hash of the weights.
  """

  path: pathlib.Path
  tokenizer: PreTrainedTokenizerBase
  hf_config: dict[str, Any]
  config: qwen3.Config
  params: Any
  version: str


def load(path: pathlib.Path) -> Policy:
  """Reads a policy; InputError where the directory is not one."""
  hf_config = hf.read_config(path)
  config = qwen3.config_from_hf(hf_config)
  params = hf.load_params(path, hf_config)
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  return Policy(
    path=path,
    tokenizer=tokenizer_lib.load(path),
    hf_config=hf_config,
    config=config,
    params=params,
    version=digest(params),
  )


def starting(config: Any, workdir: pathlib.Path) -> Policy:
  """The frozen starting policy of a run, which is also its reference."""
  if config.warm_start.steps:
    return load(workdir / WARM_START)
  return load(pathlib.Path(config.model.path or MINI))


def digest(params: Any) -> str:
  """16 hex digits that name these weights."""
  state = hashlib.blake2b(digest_size=8)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    state.update(jax.tree_util.keystr(path).encode())
    state.update(np.ascontiguousarray(leaf).tobytes())
  return state.hexdigest()


def engine(policy: Policy, config: Any) -> jax_sampler.JaxSampler:
  """The embedded engine, loaded with `policy`."""
  sampler = jax_sampler.JaxSampler(
    policy.config,
    dtype=jnp.dtype(config.model.dtype),
    attention=config.model.attention,
    batch_tokens=config.engine.batch_tokens,
    batch_rows=config.engine.batch_rows,
  )
  sampler.load(jax.device_put(policy.params), policy.version)
  return sampler
