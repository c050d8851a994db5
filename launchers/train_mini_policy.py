"""Trains the mini policy that ships with the package.

  python launchers/train_mini_policy.py --output=pivotrl_jax/models/mini

A Qwen3 of about a million parameters learns to continue episodes of the mini
SWE world played by an agent that is right most of the time and wrong often
(`--poor`), and to answer small questions outside it. Nothing is crippled: it
imitates a mediocre agent well, hence fails about as often. The tokenizer must
be there already (launchers/build_mini_tokenizer.py). About 36 minutes on
two cores.
"""

import concurrent.futures
import functools
import multiprocessing
import pathlib
import sys
import time

from absl import app
from absl import flags
from absl import logging
import flax.linen as nn
import jax
import numpy as np
import optax

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.envs import worlds
from pivotrl_jax.evaluation import benchmarks
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

_OUTPUT = flags.DEFINE_string("output", None, "Directory with the tokenizer.")
_EPISODES = flags.DEFINE_integer("episodes", 12_000, "Episodes to play.")
_QUESTIONS = flags.DEFINE_integer("questions", 2_000, "Questions to answer.")
_POOR = flags.DEFINE_float("poor", 0.25, "Share of poor turns.")
_STEPS = flags.DEFINE_integer("steps", 6_000, "Optimizer steps.")
_BATCH = flags.DEFINE_integer(
  "batch", 5, "Sequences a step: steps count for more."
)
_RATE = flags.DEFINE_float("learning_rate", 1e-2, "Peak learning rate.")
_LENGTH = flags.DEFINE_integer("length", 420, "Most tokens of a sequence.")
_CONTEXT = flags.DEFINE_float(
  "context_weight", 0.5, "Loss weight of tokens that no agent wrote."
)
_HIDDEN = flags.DEFINE_integer("hidden", 128, "Model width.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that play.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")


def shape(vocabulary: int) -> dict[str, object]:
  """The mini policy's config.json."""
  heads = _HIDDEN.value // 32
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": vocabulary,
    "hidden_size": _HIDDEN.value,
    "intermediate_size": 3 * _HIDDEN.value,
    "num_hidden_layers": _LAYERS.value,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "initializer_range": 0.02,
  }


def encode(tokenizer, messages, tools):
  """Ids of a whole chat, and the loss weight of each.

  What the agent says weighs 1. Of the rest, what stood there before weighs
  `--context_weight`, as practice in copying; what is new cannot be foretold.
  """
  ids, spoken = np.zeros(0, np.int32), np.zeros(0, bool)
  for i, message in enumerate(messages):
    if message.role != "assistant":
      continue
    prompt = render.prompt_ids(tokenizer, messages[:i], tools)
    action = render.action_ids(tokenizer, messages[:i], message, tools)
    new = len(prompt) - len(ids)
    spoken = np.concatenate(
      [spoken, np.zeros(new, bool), np.ones(len(action), bool)]
    )
    ids = np.concatenate([prompt, action])
  _, first = np.unique(ids, return_index=True)
  repeated = np.ones(len(ids), bool)
  repeated[first] = False
  weights = np.where(spoken, 1.0, _CONTEXT.value * repeated)
  return ids, weights.astype(np.float32)


def play(path, poor, index):
  """One episode, encoded."""
  trajectory = worlds.demonstrate("swe", index, "train", 2, poor=poor)
  return encode(_tokenizer(path), trajectory.messages, trajectory.tools)


def _output():
  return pathlib.Path(_OUTPUT.value).expanduser()


@functools.cache
def _tokenizer(path):
  return tokenizer_lib.load(path)


def sequences():
  """All training sequences that fit: of episodes, and of questions."""
  path = _output()
  job = functools.partial(play, path, _POOR.value)
  # Forked before the backend starts: workers inherit the parsed flags.
  with concurrent.futures.ProcessPoolExecutor(
    _WORKERS.value, mp_context=multiprocessing.get_context("fork")
  ) as pool:
    played = list(pool.map(job, range(_EPISODES.value), chunksize=64))
  kept = [s for s in played if len(s[0]) <= _LENGTH.value]
  asked = [
    encode(
      _tokenizer(path),
      (*q.messages, types.Message("assistant", q.answer)),
      (),
    )
    for q in benchmarks.questions("train", 2, _QUESTIONS.value)
  ]
  logging.info(
      "%d episodes, %d too long, %d tokens; %d questions",
      len(kept), len(played) - len(kept), sum(len(i) for i, _ in kept),
      len(asked),
  )  # fmt: skip
  return kept, asked


def optimizer():
  """Muon on the matrices, Adam on embeddings and scales."""

  def schedule(rate):
    return optax.warmup_cosine_decay_schedule(
      0.0, rate, _STEPS.value // 50, _STEPS.value, 0.02 * rate
    )

  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "muon" if path[-1].key == "kernel" else "adam", params
    )

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.multi_transform(
      {
        "muon": optax.contrib.muon(schedule(_RATE.value)),
        "adam": optax.adam(schedule(_RATE.value / 5), b2=0.98),
      },
      labels,
    ),
  )


def batch_of(chosen, shared, shape):
  """Sequences as branches on the `shared` tokens that all begin with."""
  zeros = [np.zeros(len(ids) - shared, np.float32) for ids, _ in chosen]
  rows = batches.Rows(
    prompts=[ids[:shared] for ids, _ in chosen],
    actions=[ids[shared:] for ids, _ in chosen],
    weights=[weights[shared:] for _, weights in chosen],
    advantages=np.zeros(len(chosen), np.float32),
    sampler_log_probs=zeros,
  )
  return batches.pack(rows, shape)[0]


def shared_tokens(data):
  """How many tokens all sequences begin with."""
  ids = [ids for ids, _ in data]
  shared = 1
  while len({tuple(x[: shared + 1]) for x in ids}) == 1:
    shared += 1
  return shared


def main(_):
  episodes, questions = sequences()
  config_json = shape(_tokenizer(_output()).size)
  config = qwen3.config_from_hf(config_json)
  tx = optimizer()
  params = nn.unbox(qwen3.init_params(config, jax.random.key(_SEED.value)))
  # Tied: a token copied to the output scores sqrt(width) * |embedding|, which
  # at the usual 0.02 is too little to be noticed, hence learned, for long.
  params["embed_tokens"]["embedding"] *= 5.0
  state = state_lib.create(params, tx)
  log_probs = functools.partial(
    step_lib.policy_log_probs, qwen3.Qwen3(config), chunk=512
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      loss_fn=functools.partial(step_lib.sft_loss, log_probs_fn=log_probs),
      tx=tx,
    ),
    donate_argnums=0,
  )
  kinds = [
    (data, size, shared_tokens(data))
    for data, size in ((episodes, _BATCH.value), (questions, 4 * _BATCH.value))
  ]
  sizes = batches.Shape(
    micro_batches=1,
    least=1,
    lines=1,
    trie=max(shared for *_, shared in kinds),
    branch=_BATCH.value * _LENGTH.value,
    branches=4 * _BATCH.value,
    width=_LENGTH.value,
  )
  rng = np.random.default_rng(_SEED.value)
  started = time.monotonic()
  for index in range(_STEPS.value):
    data, size, shared = kinds[index % 8 == 7]
    chosen = [data[i] for i in rng.choice(len(data), size, replace=False)]
    state, metrics, _ = step(state, batch_of(chosen, shared, sizes))
    last = index + 1 == _STEPS.value
    if index % 100 == 0 or last:
      logging.info(
          "step %d loss %.4f (%.0f s)",
          index, metrics["loss"], time.monotonic() - started,
      )  # fmt: skip
    if (index + 1) % 500 == 0 or last:
      output = _output()
      hf.save(output, jax.device_get(state.params), config_json, output)


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
