"""Checks a resolved config before any work."""

import pathlib
from typing import Any

import jax

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.models import attention
from pivotrl_jax.verifiers import verify

_CHOICES = {
  "domain": types.DOMAINS,
  "method": ("pivotrl", "sft"),
  "select": ("difficult", "mixed", "random"),
  "reward": ("functional", "strict"),
  "optimizer": ("adam", "natural"),
  "model.dtype": ("float32", "bfloat16"),
  "model.attention": attention.BODIES,
  "train.advantage": ("grpo", "loo", "rloo", "dr_grpo"),
  "train.kl": ("k1", "k2", "k3"),
  "train.loss_norm": ("token", "sequence", "constant"),
  "train.parallel": ("jit", "pmap", "sharded"),
}
_LEAST = {
  "data.max_prompt_tokens": 1,
  "data.trajectories": 0,
  "profile.group_size": 2,
  "profile.trajectories_per_batch": 1,
  "rollout.pivots_per_step": 1,
  "rollout.group_size": 2,
  "rollout.max_tokens": 1,
  "rollout.temperature": 0.0,
  "train.steps": 0,
  "train.learning_rate": 0.0,
  "train.updates_per_batch": 1,
  "train.micro_batches": 1,
  "train.batch_tokens": 0,
  "train.save_every": 1,
  "train.log_every": 1,
  "train.logits_chunk": 1,
  "train.natural_every": 0,
  "train.natural_groups": 1,
  "train.natural_directions": 1,
  "natural.iterations": 1,
  "natural.groups": 1,
  "natural.tries": 0,
  "evaluation.tasks": 0,
  "evaluation.seeds": 1,
  "evaluation.max_turns": 1,
  "evaluation.temperature": 0.0,
  "warm_start.steps": 0,
}


def check(config: Any) -> None:
  """InputError that names the first value that cannot be."""
  for name, choices in _CHOICES.items():
    value = _get(config, name)
    if value not in choices:
      raise errors.InputError(
        f"--config.{name}: {value!r}; expected one of {', '.join(choices)}"
      )
  for name, least in _LEAST.items():
    if not _get(config, name) >= least:
      raise errors.InputError(
        f"--config.{name}: {_get(config, name)}; expected at least {least}"
      )
  for name in (
    "train.natural_damping",
    "natural.learning_rate",
    "natural.max_kl",
    "natural.damping",
  ):
    if not _get(config, name) > 0:
      raise errors.InputError(
        f"--config.{name}: {_get(config, name)}; expected above 0"
      )
  if (config.optimizer, config.method) == ("natural", "sft"):
    raise errors.InputError(
      "--config.optimizer: natural, with method sft; expected adam, or"
      " --config.method=pivotrl"
    )
  if not 0 < config.pivots.threshold <= 1:
    raise errors.InputError(
      f"--config.pivots.threshold: {config.pivots.threshold}; expected a"
      " mean reward in (0, 1]"
    )
  if not 0 < config.rollout.top_p <= 1:
    raise errors.InputError(
      f"--config.rollout.top_p: {config.rollout.top_p}; expected (0, 1]"
    )
  if config.method == "pivotrl" and config.rollout.temperature == 0:
    raise errors.InputError(
      "--config.rollout.temperature: 0; expected above 0, as groups of"
      " equal actions have no variance"
    )
  _check_attention(config.model)
  _check_verifier(config.verifier)
  _check_paths(config)


def _check_attention(config):
  if config.attention != "cudnn":
    return
  backend = jax.default_backend()
  if (backend, config.dtype) != ("gpu", "bfloat16"):
    raise errors.InputError(
      f"--config.model.attention: cudnn, on {backend} in {config.dtype};"
      " expected a GPU and --config.model.dtype=bfloat16"
    )


def _check_verifier(config):
  verify.check(config.name, {}, config.setting)
  asks = config.terminus_judge.enable_llm_judge
  if config.name == "terminus_judge" and asks and not config.judge.url:
    raise errors.InputError(
      "--config.verifier.judge.url: not given; expected an OpenAI-compatible"
      " address, or --config.verifier.terminus_judge.enable_llm_judge=False"
    )


def _check_paths(config):
  if config.data.format != "world" and not config.data.path:
    raise errors.InputError(
      f"--config.data.path: not given, and {config.domain} has no embedded"
      " world; expected a file or folder of trajectories"
    )
  for name in ("data.path", "model.path"):
    value = _get(config, name)
    if value and not pathlib.Path(value).expanduser().exists():
      raise errors.InputError(
        f"--config.{name}: {value}; expected a file or folder that exists"
      )


def _get(config, name):
  for part in name.split("."):
    config = config[part]
  return config
