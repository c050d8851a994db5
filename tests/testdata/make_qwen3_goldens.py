"""Makes tiny random Qwen3 checkpoints and what transformers computes on them.

  pip install torch transformers safetensors
  python tests/testdata/make_qwen3_goldens.py

Directories beside this file: qwen3_tied (one float32 file), qwen3_untied
(bfloat16, sharded with an index), qwen3_moe (float32, a dense layer among
sparse ones) and qwen3_moe_raw (bfloat16, sharded, every second layer sparse,
gate weights as they are). Each gets golden.npz: token ids, float32 logits, and
the gradient of the summed cross-entropy of the next tokens for every
parameter, from the weights as stored; a mixture of experts also the
load-balance loss of all tokens, and the gradient of that loss alone.
"""

import pathlib

import numpy as np
import torch
from transformers import Qwen3Config
from transformers import Qwen3ForCausalLM
from transformers import Qwen3MoeConfig
from transformers import Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).parent
SHAPE = dict(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  rope_theta=10000.0,
  attn_implementation="eager",
  initializer_range=0.2,
)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)


def make(name: str, model, *, dtype: torch.dtype, shard: str) -> None:
  # Norm scales start at 1: draw them, so that a swapped name shows.
  with torch.no_grad():
    for key, value in model.named_parameters():
      if "norm" in key:
        value.uniform_(0.5, 1.5)
  model = model.to(dtype)
  model.save_pretrained(HERE / name, max_shard_size=shard)
  for file in (HERE / name).iterdir():
    file.chmod(0o644)
  (HERE / name / "generation_config.json").unlink(missing_ok=True)
  # Loaded again: casting the model would leave its rotary table in bfloat16.
  model = type(model).from_pretrained(
    HERE / name, dtype=torch.float32, attn_implementation="eager"
  )
  ids = torch.randint(0, 64, (2, 12))
  logits = model(ids).logits
  torch.nn.functional.cross_entropy(
    logits[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1), reduction="sum"
  ).backward()
  found = {"ids": ids.numpy(), "logits": logits.detach().numpy()}
  found |= gradients("grad", model)
  if isinstance(model, Qwen3MoeForCausalLM):
    model.zero_grad()
    balance = model(ids, output_router_logits=True).aux_loss
    balance.backward()
    found |= {"balance": balance.item()} | gradients("balance_grad", model)
  np.savez_compressed(HERE / name / "golden.npz", **found)


def gradients(prefix: str, model) -> dict[str, np.ndarray]:
  """By the names of the stored tensors: transformers 5 fuses the experts'."""
  found = {}
  for key, value in model.named_parameters():
    grad = torch.zeros_like(value) if value.grad is None else value.grad
    name, _, kind = key.rpartition("experts.")
    if kind == "gate_up_proj":
      parts = {"gate_proj": grad.chunk(2, 1)[0], "up_proj": grad.chunk(2, 1)[1]}
    elif kind == "down_proj" and grad.ndim == 3:
      parts = {"down_proj": grad}
    else:
      found[f"{prefix}/{key}"] = grad.numpy()
      continue
    for part, stack in parts.items():
      for i, one in enumerate(stack):
        found[f"{prefix}/{name}experts.{i}.{part}.weight"] = one.numpy()
  return found


def main() -> None:
  torch.manual_seed(0)
  make(
    "qwen3_tied",
    Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    dtype=torch.float32,
    shard="1GB",
  )
  torch.manual_seed(0)
  make(
    "qwen3_untied",
    Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=False)),
    dtype=torch.bfloat16,
    shard="20KB",
  )
  torch.manual_seed(0)
  options = SHAPE | EXPERTS | dict(num_hidden_layers=3)
  make(
    "qwen3_moe",
    Qwen3MoeForCausalLM(
      Qwen3MoeConfig(
        **options,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        tie_word_embeddings=False,
      )
    ),
    dtype=torch.float32,
    shard="1GB",
  )
  torch.manual_seed(0)
  make(
    "qwen3_moe_raw",
    Qwen3MoeForCausalLM(
      Qwen3MoeConfig(
        **SHAPE | EXPERTS,
        norm_topk_prob=False,
        decoder_sparse_step=2,
        tie_word_embeddings=True,
      )
    ),
    dtype=torch.bfloat16,
    shard="20KB",
  )


if __name__ == "__main__":
  main()
