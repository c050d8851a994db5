"""Checks a resolved config before any work."""

import os
import pathlib
import urllib.parse
from typing import Any

import jax

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import attention
from pivotrl_jax.verifiers import verify

_CHOICES = {
  "domain": types.DOMAINS,
  "method": ("pivotrl", "sft"),
  "select": ("difficult", "mixed", "random"),
  "reward": ("functional", "strict"),
  "optimizer": ("adam",),
  "data.reasoning": tokenizer_lib.REASONING,
  "data.empty_thinking": tokenizer_lib.EMPTY_THINKING,
  "model.dtype": ("float32", "bfloat16"),
  "model.attention": attention.BODIES,
  "engine.name": ("jax", "sglang"),
  "engine.stale": ("refuse", "correct"),
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
  "rollout.top_k": 0,
  "engine.tolerance": 0.0,
  "engine.rows_per_request": 1,
  "engine.concurrency": 1,
  "engine.retries": 0,
  "serve.context": 2,
  "serve.slice_tokens": 1,
  "serve.batch_rows": 1,
  "serve.queue_rows": 1,
  "serve.max_body": 1,
  "serve.max_n": 1,
  "train.steps": 0,
  "train.learning_rate": 0.0,
  "train.updates_per_batch": 1,
  "train.micro_batches": 1,
  "train.batch_tokens": 0,
  "train.save_every": 1,
  "train.log_every": 1,
  "train.logits_chunk": 1,
  "evaluation.tasks": 0,
  "evaluation.seeds": 1,
  "evaluation.max_turns": 1,
  "evaluation.temperature": 0.0,
  "warm_start.steps": 0,
}


def expand(config: Any) -> None:
  """Replaces the `~` that a value begins with by the home it stands for."""
  for name, value in list(config.items()):
    if hasattr(value, "items"):
      expand(value)
    elif isinstance(value, str) and value.startswith("~"):
      config[name] = os.path.expanduser(value)


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
  _check_engine(config)
  _check_verifier(config.verifier)
  _check_paths(config)
  policy_lib.template_kwargs(config)


def _check_attention(config):
  if config.attention != "cudnn":
    return
  backend = jax.default_backend()
  if (backend, config.dtype) != ("gpu", "bfloat16"):
    raise errors.InputError(
      f"--config.model.attention: cudnn, on {backend} in {config.dtype};"
      " expected a GPU and --config.model.dtype=bfloat16"
    )


def _check_engine(config):
  given = config.engine
  if given.name == "jax":
    if given.release:
      raise errors.InputError(
        "--config.engine.release: True; expected --config.engine.name=sglang"
      )
    return
  for address in [*given.urls.split(","), *filter(None, [given.router])]:
    parts = urllib.parse.urlsplit(address.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise errors.InputError(
        f"--config.engine.urls: {address!r}; expected addresses such as"
        " http://127.0.0.1:30000, with commas between"
      )
  if given.stale == "correct" and not config.train.importance_cap:
    raise errors.InputError(
      "--config.engine.stale: correct, with train.importance_cap=0; expected a"
      " cap above 0, as importance weights are what corrects"
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
  for name in ("data.path", "model.path", "model.chat_template"):
    value = _get(config, name)
    if value and not pathlib.Path(value).exists():
      raise errors.InputError(
        f"--config.{name}: {value}; expected a file or folder that exists"
      )


def _get(config, name):
  for part in name.split("."):
    config = config[part]
  return config
