"""Hugging Face generate as a profiler: TURNS K P A REPEATS, one turn a call.

A user's own loop: for every turn of a trajectory of P tokens, K samples of A
tokens on its prefix. Prints one line of JSON.
"""

import json
import resource
import statistics
import sys
import time

import torch
import transformers

turns, size, length, width, repeats = map(int, sys.argv[1:6])
torch.manual_seed(0)
model = transformers.Qwen3ForCausalLM(
  transformers.Qwen3Config(
    vocab_size=4096, hidden_size=256, intermediate_size=768,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, max_position_embeddings=32768, tie_word_embeddings=True,
  )
).eval()  # fmt: skip
model.generation_config.eos_token_id = None


def sample(ids):
  model.generate(
    ids[None], attention_mask=torch.ones_like(ids[None]), do_sample=True,
    num_return_sequences=size, max_new_tokens=width, min_new_tokens=width,
    pad_token_id=0,
  )  # fmt: skip


seconds = []
with torch.no_grad():
  sample(torch.randint(3, 4096, (length // turns,)))
  for _ in range(repeats):
    ids = torch.randint(3, 4096, (length,))
    start = time.perf_counter()
    for turn in range(turns):
      sample(ids[: length * (turn + 1) // turns])
    seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": statistics.median(seconds), "peak_gib": peak}))
