"""Tunix's GRPOLearner: B G P A STEPS. Prints one line of JSON.

Needs `pip install google-tunix` (Python 3.12). Prompts are numbered words of
a vocabulary made here; the reward is as random as everybody's.
"""

import json
import random
import resource
import statistics
import sys
import time

from flax import nnx
import jax
import numpy as np
import optax
import transformers
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

import words

pivots, size, length, width, steps = map(int, sys.argv[1:6])


class Tokenizer(transformers.PreTrainedTokenizerFast):
  """Encodes what the learner hands over: an array of one text."""

  def encode(self, text, **kwargs):
    if not isinstance(text, str):
      text = str(np.asarray(text).reshape(-1)[0])
    return super().encode(text, **kwargs)


tokenizer = words.tokenizer(Tokenizer)
shape = qwen3.ModelConfig(
  num_layers=4, vocab_size=4096, embed_dim=256, hidden_dim=768, num_heads=4,
  head_dim=64, num_kv_heads=2, rope_theta=1_000_000, norm_eps=1e-6,
  use_tied_embedding=True,
)  # fmt: skip
mesh = jax.make_mesh(
  (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
)
with jax.set_mesh(mesh):
  actor, reference = (qwen3.Qwen3(shape, rngs=nnx.Rngs(0)) for _ in range(2))
draw = random.Random(0)
calls = []


def prompts():
  for _ in range(steps + 4):
    texts = [words.text(draw, length) for _ in range(pivots)]
    yield {"prompts": np.array(texts)}


def reward(prompts, completions, **_):
  calls.append(time.perf_counter())
  return [float(len(set(c)) % 2) for c in completions]


role = rl_cluster.Role
cluster = rl_cluster.RLCluster(
  actor=actor,
  reference=reference,
  tokenizer=tokenizer,
  cluster_config=rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(
      (role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh
    ),
    rollout_engine="vanilla",
    training_config=rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.adamw(1e-6),
      max_steps=steps + 3,
      eval_every_n_steps=10**9,
      mini_batch_size=pivots,
      train_micro_batch_size=pivots,
    ),
    rollout_config=base_rollout.RolloutConfig(
      max_tokens_to_generate=width,
      max_prompt_length=length,
      kv_cache_size=length + width + 8,
      temperature=1.0,
      top_p=1.0,
    ),
  ),
)
grpo_learner.GRPOLearner(
  rl_cluster=cluster,
  reward_fns=reward,
  algo_config=grpo_learner.GRPOConfig(
    num_generations=size, num_iterations=1, beta=0.0
  ),
).train(prompts())
seconds = [b - a for a, b in zip(calls[2:], calls[3:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": statistics.median(seconds), "peak_gib": peak}))
