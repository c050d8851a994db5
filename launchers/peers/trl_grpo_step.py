"""TRL's GRPOTrainer: B G P A STEPS. Prints one line of JSON."""

import json
import random
import resource
import statistics
import sys
import tempfile
import time

import datasets
import torch
import transformers
import trl

import words

pivots, size, length, width, steps = map(int, sys.argv[1:6])
tokenizer = words.tokenizer()
torch.manual_seed(0)
model = transformers.Qwen3ForCausalLM(
  transformers.Qwen3Config(
    vocab_size=4096, hidden_size=256, intermediate_size=768,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, max_position_embeddings=32768, tie_word_embeddings=True,
    eos_token_id=1, pad_token_id=0, bos_token_id=1,
  )
)  # fmt: skip
model.generation_config.eos_token_id = None
draw = random.Random(0)
prompts = [words.text(draw, length) for _ in range(pivots * (steps + 4))]
ends = []


class Clock(transformers.TrainerCallback):
  def on_step_end(self, *args, **kwargs):
    ends.append(time.perf_counter())


with tempfile.TemporaryDirectory() as folder:
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=lambda completions, **_: [
      float(len(set(c)) % 2) for c in completions
    ],
    args=trl.GRPOConfig(
      output_dir=folder, per_device_train_batch_size=pivots * size,
      num_generations=size, max_completion_length=width,
      max_steps=steps + 2, report_to=[], beta=0.0, use_cpu=True, bf16=False,
      save_strategy="no", learning_rate=1e-6, gradient_checkpointing=False,
      temperature=1.0, disable_tqdm=True,
    ),
    train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
    processing_class=tokenizer,
    callbacks=[Clock()],
  )  # fmt: skip
  sys.stdout, printed = sys.stderr, sys.stdout
  trainer.train()
  sys.stdout = printed
seconds = [b - a for a, b in zip(ends[1:], ends[2:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": statistics.median(seconds), "peak_gib": peak}))
