"""A small random mixture of experts, as a directory."""

import pathlib
from typing import Any

import flax.linen as nn
import jax

from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3


def saved(path: pathlib.Path, *, times: float = 1.0, **changes: Any):
  """Writes one with the mini policy's tokenizer, and returns its path.

  Args:
    path: of the directory.
    times: factor of its matrices; more than 1 keeps experts from nearly tying.
    **changes: of its config.json.
  """
  shape = hf.read_config(policy_lib.MINI) | {
    "architectures": [hf.SPARSE], "model_type": "qwen3_moe", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1,
  } | changes  # fmt: skip
  params = qwen3.init_params(qwen3.config_from_hf(shape), jax.random.key(0))
  wider = jax.tree.map(
    lambda x: times * x if x.ndim > 1 else x, nn.unbox(params)
  )
  hf.save(path, wider, shape, policy_lib.MINI)
  return path
