"""Makes tiny random Qwen3 checkpoints and what transformers computes on them.

  pip install torch transformers safetensors
  python tests/testdata/make_qwen3_goldens.py

Two directories beside this file: qwen3_tied (one float32 file) and
qwen3_untied (bfloat16, sharded with an index). Each gets golden.npz: token
ids, float32 logits, and the gradient of the summed cross-entropy of the next
tokens for every parameter, from the weights as stored.
"""

import pathlib

import numpy as np
import torch
from transformers import Qwen3Config
from transformers import Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent


def make(name: str, *, tied: bool, dtype: torch.dtype, shard: str) -> None:
  torch.manual_seed(0)
  model = Qwen3ForCausalLM(
    Qwen3Config(
      vocab_size=64,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=16,
      rope_theta=10000.0,
      tie_word_embeddings=tied,
      attn_implementation="eager",
      initializer_range=0.2,
    )
  )
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
  model = Qwen3ForCausalLM.from_pretrained(
    HERE / name, dtype=torch.float32, attn_implementation="eager"
  )
  ids = torch.randint(0, 64, (2, 12))
  logits = model(ids).logits
  torch.nn.functional.cross_entropy(
    logits[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1), reduction="sum"
  ).backward()
  np.savez_compressed(
    HERE / name / "golden.npz",
    ids=ids.numpy(),
    logits=logits.detach().numpy(),
    **{
      f"grad/{key}": value.grad.numpy()
      for key, value in model.named_parameters()
    },
  )


if __name__ == "__main__":
  make("qwen3_tied", tied=True, dtype=torch.float32, shard="1GB")
  make("qwen3_untied", tied=False, dtype=torch.bfloat16, shard="20KB")
