"""PrefixGrouper on Hugging Face Qwen3, loss and gradient: B G P A REPEATS.

Needs `pip install torch transformers prefix-grouper`. A prompt is computed
once for its group, logits of the actions alone; the advantages are random.
Prints one line of JSON.
"""

import json
import resource
import statistics
import sys
import time

import prefix_grouper
from prefix_grouper.utils import register_transformers
import torch
from torch.nn import functional
import transformers

pivots, size, length, width, repeats = map(int, sys.argv[1:6])


def causal(module, q, k, v, mask, *args, scaling=None, **kwargs):
  """Attention without padding, aligned at the last key, as flash-attn does."""
  square = q.shape[2] == k.shape[2]
  seen = None
  if not square:
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    seen = seen.tril(k.shape[2] - q.shape[2])
  out = functional.scaled_dot_product_attention(
    q, k, v, seen, is_causal=square, scale=scaling, enable_gqa=True
  )
  return out.transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("causal", causal)
register_transformers.register_attention()
torch.manual_seed(0)
model = transformers.Qwen3ForCausalLM(
  transformers.Qwen3Config(
    vocab_size=4096, hidden_size=256, intermediate_size=768,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, max_position_embeddings=32768, tie_word_embeddings=True,
  )
)  # fmt: skip
model.set_attn_implementation("prefix_grouper_attention")
rows = pivots * size
prompts = torch.randint(3, 4096, (pivots, length))
actions = torch.randint(3, 4096, (rows, width))
advantages = torch.randn(rows)
seen = torch.ones(pivots, length, dtype=torch.long)
said = torch.ones(rows, width, dtype=torch.long)
grouper = prefix_grouper.PrefixGrouper.from_ungrouped_masks(
  seen, said, group_sizes=size
)
ids = grouper.concat_input(prompts, seen, actions, said)
own = torch.arange(length, length + width).repeat(size)
positions = torch.cat([torch.arange(length), own]).expand(pivots, -1)


def gradient():
  model.zero_grad(set_to_none=True)
  hidden = model.model(
    input_ids=ids, position_ids=positions, use_cache=False,
    prefix_grouper=grouper, prefix_grouper_attn_func="causal",
  ).last_hidden_state  # fmt: skip
  _, _, suffix, _ = grouper.split_output(hidden, include_prefix_last=1)
  logits = model.lm_head(suffix[:, :-1]).float()
  scores = torch.log_softmax(logits, -1)
  log_probs = scores.gather(-1, actions[..., None])[..., 0]
  ratio = torch.exp(log_probs - log_probs.detach())
  (-(ratio * advantages[:, None]).mean()).backward()


gradient()
seconds = []
for _ in range(repeats):
  start = time.perf_counter()
  gradient()
  seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": statistics.median(seconds), "peak_gib": peak}))
