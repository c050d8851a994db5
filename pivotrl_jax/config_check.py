"""Checks a resolved config before any work.

`RULES` has every key of `configs/common.py`; what keys have no effect beside
others is in `_without_effect`.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import os
import pathlib
from typing import Any

from absl import logging
import jax

from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import importers
from pivotrl_jax.dry_run import predict
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import worlds
from pivotrl_jax.models import attention
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3
from pivotrl_jax.pivots import parts
from pivotrl_jax.train import methods
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.verifiers import verify


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a key's value must be: a test, and the same in words."""

  holds: Callable[[Any], bool]
  expected: str


def _one_of(*choices):
  return Rule(
    lambda x: isinstance(x, str) and x in choices,
    f"one of {', '.join(choices)}",
  )


def _whole(least):
  return Rule(
    lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least,
    f"a whole number, at least {least}",
  )


def _is_number(x):
  return (
    isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
  )


def _number(least, most=math.inf):
  words = f"at least {least}" if most == math.inf else f"from {least} to {most}"
  return Rule(
    lambda x: _is_number(x) and least <= x <= most, f"a number {words}"
  )


def _above(least, most=math.inf):
  words = f"above {least}" + ("" if most == math.inf else f", at most {most}")
  return Rule(
    lambda x: _is_number(x) and least < x <= most, f"a number {words}"
  )


def _or_none(rule):
  return Rule(lambda x: x is None or rule.holds(x), f"{rule.expected}, or None")


_FLAG = Rule(lambda x: isinstance(x, bool), "True or False")
_TEXT = Rule(lambda x: isinstance(x, str), "text")
_LABEL = Rule(lambda x: isinstance(x, str) and bool(x.strip()), "text")
_URL = Rule(
  lambda x: (
    isinstance(x, str) and (not x or x.startswith(("http://", "https://")))
  ),
  "an address that starts with http:// or https://",
)
_ADDRESSES = Rule(
  lambda x: (
    isinstance(x, str)
    and all(a.strip().startswith(("http://", "https://")) for a in x.split(","))
  ),
  "addresses that start with http:// or https://, with commas between",
)
_PORT = Rule(
  lambda x: isinstance(x, int) and 0 <= x < 1 << 16, "a port, or 0 for any"
)
_DEVICES = Rule(
  lambda x: _whole(1).holds(x) or (_whole(-1).holds(x) and x == -1),
  "a whole number, at least 1, or -1 for what other axes leave",
)
_SHARE = _number(0, 1)
# Rewards lie in [0, 1]: no std is above a half.
_STD = Rule(lambda x: _is_number(x) and 0 <= x < 0.5, "a number from 0 to 0.5")
_KEYS_BY_TOOL = Rule(
  lambda x: (
    isinstance(x, Mapping)
    and all(
      isinstance(keys, (list, tuple)) and all(isinstance(k, str) for k in keys)
      for keys in x.values()
    )
  ),
  "a list of argument names for each tool",
)

RULES = {
  "domain": _one_of(*types.DOMAINS),
  "world": _one_of("", *worlds.WORLDS),
  "seed": _whole(0),
  "method": _one_of(*methods.METHODS),
  "select": _one_of("difficult", "mixed", "random"),
  "reward": _one_of("functional", "strict"),
  "optimizer": _one_of("adam", "natural"),
  "data.format": _LABEL,  # The importers know their formats.
  "data.path": _TEXT,
  "data.tools": _TEXT,
  "data.trajectories": _whole(0),
  "data.successful_only": _FLAG,
  "data.max_prompt_tokens": _whole(1),
  "data.reasoning": _one_of(*tokenizer_lib.REASONING),
  "data.empty_thinking": _one_of(*tokenizer_lib.EMPTY_THINKING),
  "model.path": _TEXT,
  "model.chat_template": _TEXT,
  "model.template_kwargs": _TEXT,
  "model.dtype": _one_of("float32", "bfloat16"),
  "model.attention": _one_of(*attention.BODIES),
  "model.remat": Rule(
    lambda x: isinstance(x, bool | str) and x in qwen3.REMAT,
    f"one of {', '.join(map(str, qwen3.REMAT))}",
  ),
  "model.scan_layers": _FLAG,
  "engine.batch_tokens": _whole(1),
  "engine.batch_rows": _whole(1),
  "engine.name": _one_of("jax", "sglang"),
  "engine.urls": _ADDRESSES,
  "engine.router": _URL,
  "engine.weights": _TEXT,
  "engine.tolerance": _number(0),
  "engine.deterministic": _FLAG,
  "engine.stale": _one_of("refuse", "correct"),
  "engine.release": _FLAG,
  "engine.rows_per_request": _whole(1),
  "engine.concurrency": _whole(1),
  "engine.timeout": _above(0),
  "engine.retries": _whole(0),
  "engine.patience": _above(0),
  "warm_start.steps": _whole(0),
  "warm_start.trajectories": _whole(1),
  "warm_start.reuse": _FLAG,
  "warm_start.learning_rate": _above(0),
  "profile.group_size": _whole(2),
  "profile.trajectories": _whole(0),
  "profile.trajectories_per_batch": _whole(1),
  "profile.part": Rule(
    lambda x: x == "" or isinstance(x, str) and bool(parts.parse(x)),
    "I/N, a part from 1 to N",
  ),
  "profile.parts": _TEXT,
  "profile.again_every": _whole(0),
  "profile.again_below": _SHARE,
  "pivots.threshold": _above(0, 1),
  "pivots.keep_all_fail": _FLAG,
  "pivots.count": _whole(0),
  "pivots.min_std": _STD,
  "verifier.name": _one_of(*verify.VERIFIERS),
  "verifier.setting": _one_of(*verify.SETTINGS),
  "verifier.judge.url": _URL,
  "verifier.judge.model": _TEXT,
  "verifier.judge.timeout": _above(0),
  "verifier.judge.retries": _whole(0),
  "verifier.judge.concurrency": _whole(1),
  "verifier.judge.max_tokens": _whole(1),
  "verifier.judge.most_failed": _SHARE,
  "verifier.single_step.word_count_similarity_threshold": _SHARE,
  "verifier.single_step.message_similarity_threshold": _number(0, 0.5),
  "verifier.single_step.floating_point_comparison_threshold": _number(0),
  "verifier.single_step.parallel_tool_call_rewarding": _FLAG,
  "verifier.single_step.allow_subset": _FLAG,
  "verifier.single_step.allow_superset": _FLAG,
  "verifier.single_step.parallel_tool_call_reward_mode": _one_of(
    "binary_strict", "fractional", "f1"
  ),
  "verifier.swe_pivot.reward_mode": _one_of("binary", "continuous"),
  "verifier.swe_pivot.enable_target_match": _FLAG,
  "verifier.swe_pivot.enable_argument_similarity": _FLAG,
  "verifier.swe_pivot.similarity_threshold": _SHARE,
  "verifier.swe_pivot.similarity_full_credit": _SHARE,
  "verifier.swe_pivot.enable_diff_size_shaping": _FLAG,
  "verifier.swe_pivot.diff_size_alpha": _SHARE,
  "verifier.swe_pivot.pattern_threshold": _SHARE,
  "verifier.swe_pivot.edit_scope": _one_of("text", "changed"),
  "verifier.terminus_judge.enable_string_similarity": _FLAG,
  "verifier.terminus_judge.string_similarity_threshold": _SHARE,
  "verifier.terminus_judge.enable_llm_judge": _FLAG,
  "verifier.terminus_judge.check_twice_swap": _FLAG,
  "verifier.terminus_judge.reward_if_swap_fails": _SHARE,
  "verifier.terminus_judge.judge_equal_label": _LABEL,
  "verifier.terminus_judge.judge_not_equal_label": _LABEL,
  "verifier.terminus_judge.judge_fallback_reward": _or_none(_SHARE),
  "verifier.terminal_multi_harness.string_similarity_threshold": _SHARE,
  "verifier.terminal_multi_harness.query_string_similarity_threshold": (
    _or_none(_SHARE)
  ),
  "verifier.terminal_multi_harness.floating_point_comparison_threshold": (
    _number(0)
  ),
  "verifier.terminal_multi_harness.ignored_argument_keys_by_tool": (
    _KEYS_BY_TOOL
  ),
  "rollout.pivots_per_step": _whole(1),
  "rollout.group_size": _whole(2),
  "rollout.max_tokens": _whole(1),
  "rollout.cut_off": _one_of("fail", "mask"),
  "rollout.temperature": _number(0),
  "rollout.top_p": _above(0, 1),
  "rollout.top_k": _whole(0),
  "sft.turns": _whole(1),
  "e2e.tasks": _whole(0),
  "e2e.tasks_per_step": _whole(1),
  "e2e.max_turns": _whole(1),
  "train.steps": _whole(0),
  "train.init": _TEXT,
  "train.learning_rate": _number(0),
  "train.warmup_steps": _whole(0),
  "train.weight_decay": _number(0),
  "train.clip_norm": _number(0),
  "train.advantage": _one_of("grpo", "loo", "rloo", "dr_grpo"),
  "train.min_std": _STD,
  "train.clip_low": _SHARE,
  "train.clip_high": _number(0),
  "train.kl": _one_of("k1", "k2", "k3"),
  "train.kl_coef": _number(0),
  "train.loss_norm": _one_of("token", "sequence", "constant"),
  "train.importance_cap": _number(0),
  "train.importance_floor": _number(0),
  "train.reject_gap": _number(0),
  "train.mismatch_warning": _number(0),
  "train.updates_per_batch": _whole(1),
  "train.micro_batches": _whole(1),
  "train.batch_tokens": _whole(0),
  "train.branch_tokens": _whole(0),
  "train.logits_chunk": _whole(1),
  "train.parallel": _one_of("jit", "pmap", "sharded"),
  **{f"train.mesh.{axis}": _DEVICES for axis in parallel.AXES},
  "train.lora_rank": _whole(0),
  "train.lora_alpha": _above(0),
  "train.lora_targets": Rule(
    lambda x: isinstance(x, str) and set(lora.names(x)) <= {*lora.TARGETS},
    f"some of {', '.join(lora.TARGETS)}, with commas between",
  ),
  "train.router_aux_loss_coef": _number(0),
  "train.router_count": _one_of(*step_lib.COUNTS),
  "train.freeze_router": _FLAG,
  "train.replay_routes": _FLAG,
  "train.save_every": _whole(1),
  "train.keep_checkpoints": _whole(1),
  "train.keep_best": _whole(0),
  "train.best_by": _LABEL,
  "train.keep_groups": _whole(0),
  "train.log_every": _whole(1),
  "train.natural_every": _whole(0),
  "train.natural_groups": _whole(1),
  "train.natural_directions": _whole(1),
  "train.natural_damping": _above(0),
  "train.watch_every": _whole(0),
  "train.watch_prompts": _whole(0),
  "train.watch_actions": _whole(1),
  "natural.learning_rate": _above(0),
  "natural.max_kl": _above(0),
  "natural.damping": _above(0),
  "natural.iterations": _whole(1),
  "natural.groups": _whole(1),
  "natural.tries": _whole(0),
  "evaluation.split": _one_of("eval", "validation"),
  "evaluation.tasks": _whole(0),
  "evaluation.seeds": _whole(1),
  "evaluation.temperature": _number(0),
  "evaluation.max_turns": _whole(1),
  "evaluation.questions": _whole(0),
  "dry_run.meshes": _LABEL,  # Looked at by the stage, as the next but one.
  "dry_run.model": _one_of(*predict.MODELS),
  "dry_run.prompts": _LABEL,
  "dry_run.layers": _TEXT,
  "dry_run.compiler": _one_of("auto", "cpu"),
  "report.pivots": _whole(0),
  "serve.host": _LABEL,
  "serve.port": _PORT,
  "serve.model": _LABEL,
  "serve.record": _TEXT,
  "serve.context": _whole(2),
  "serve.slice_tokens": _whole(1),
  "serve.batch_rows": _whole(1),
  "serve.queue_rows": _whole(1),
  "serve.max_body": _whole(1),
  "serve.max_n": _whole(1),
}
# (World, verifier) of different actions -> what fits.
_UNFIT = {
  ("terminal", "terminal_multi_harness"): (
    "terminus_judge, or --config.world=terminal_calls"
  ),
  ("terminal_calls", "terminus_judge"): (
    "terminal_multi_harness, or --config.world=terminal"
  ),
}
# Below the first, samples of a group are all but equal; at the second, rarely
# different.
_LEAST_TEMPERATURE, _LOW_TEMPERATURE = 0.01, 0.2


def expand(config: Any) -> None:
  """Replaces the `~` that a value begins with by the home it stands for."""
  for name, value in list(config.items()):
    if hasattr(value, "items"):
      expand(value)
    elif isinstance(value, str) and value.startswith("~"):
      config[name] = os.path.expanduser(value)


def check(config: Any, default: Any = None, *, here: bool = True) -> None:
  """InputError that names the first value that cannot be.

  What can be, but not as meant, is said in a line of its own each.

  Args:
    config: as it will run.
    default: as it was before flags changed it; None where nobody knows.
    here: whether data are read, and these devices used; a dry run does not.
  """
  check_values(config, here=here)
  if here:
    _check_attention(config.model)
    parallel.of_config(config.train)
  if hosts.count() > 1 and config.train.parallel == "jit":
    raise errors.InputError(
      "--config.train.parallel: 'jit' is one device, of"
      f" --processes={hosts.count()}; expected sharded or pmap"
    )
  if methods.METHODS[config.method].SAMPLES:
    _warn_of_sampling(config.rollout)
  if default is not None:
    _name_the_idle(config, default)


def check_values(config: Any, *, here: bool = True) -> None:
  """`check` without a look at the device, which may be another machine's."""
  values = config.to_dict()
  for name, rule in RULES.items():
    value = _get(values, name)
    if not rule.holds(value):
      raise errors.InputError(
        f"--config.{name}: {value!r}; expected {rule.expected}"
      )
  for refused, place, expected in _contradictions(config):
    if refused:
      raise errors.InputError(
        f"--config.{place}: {_get(config, place)!r}; expected {expected}"
      )
  if here:
    _check_verifier(config.verifier)
  _check_paths(config, here)
  policy_lib.template_kwargs(config)


def _contradictions(config) -> Iterator[tuple[bool, str, str]]:
  """(whether it is so, key, what is expected) of values beside others."""
  t, r, v = config.train, config.rollout, config.verifier
  method = methods.METHODS[config.method]
  yield (
    method.SAMPLES and r.temperature < _LEAST_TEMPERATURE,
    "rollout.temperature",
    f"at least {_LEAST_TEMPERATURE}, as groups of equal actions have no"
    " variance",
  )
  yield (
    method.SAMPLES and t.kl == "k1" and t.kl_coef > 0,
    "train.kl",
    "k2 or k3 where train.kl_coef is above 0: as a loss k1 has no gradient in"
    " the mean, noise alone",
  )
  world = worlds.of(config)
  yield (
    method.IN_WORLD and world is None,
    "method",
    "one that trains on data of one's own, which are no world: pivotrl or sft",
  )
  yield (
    world is not None and worlds.WORLDS[world].DOMAIN != config.domain,
    "world",
    f"a world of the domain {config.domain}",
  )
  yield (
    (world, v.name) in _UNFIT and config.reward == "functional",
    "verifier.name",
    _UNFIT.get((world, v.name), ""),
  )
  yield (
    config.optimizer not in method.OPTIMIZERS,
    "optimizer",
    f"{' or '.join(method.OPTIMIZERS)} where method={config.method}",
  )
  yield (
    t.importance_floor > 0 and not t.importance_cap,
    "train.importance_floor",
    "0, or a train.importance_cap with it",
  )
  yield (
    t.importance_floor > t.importance_cap > 0,
    "train.importance_floor",
    f"at most train.importance_cap={t.importance_cap}",
  )
  yield (
    t.lora_rank > 0 and config.optimizer == "natural",
    "train.lora_rank",
    "0, or optimizer=adam: natural steps are of all parameters",
  )
  yield (
    config.engine.release and config.engine.name == "jax",
    "engine.release",
    "False, or engine.name=sglang",
  )
  yield (
    config.engine.stale == "correct" and not t.importance_cap,
    "engine.stale",
    "refuse, or a train.importance_cap above 0: importance weights are what"
    " corrects",
  )
  yield (
    v.swe_pivot.reward_mode == "continuous"
    and v.swe_pivot.similarity_threshold > v.swe_pivot.similarity_full_credit,
    "verifier.swe_pivot.similarity_threshold",
    "at most verifier.swe_pivot.similarity_full_credit="
    f"{v.swe_pivot.similarity_full_credit}",
  )
  yield (
    v.terminus_judge.judge_equal_label
    == v.terminus_judge.judge_not_equal_label,
    "verifier.terminus_judge.judge_not_equal_label",
    "another label than judge_equal_label",
  )


def _warn_of_sampling(rollout):
  for name, cuts, whole in (
    ("top_p", rollout.top_p < 1, 1),
    ("top_k", rollout.top_k > 0, 0),
  ):
    if cuts:
      logging.warning(
        "--config.rollout.%s: %s; training takes log-probs of the whole"
        " distribution, of which these samples are not: expected %d",
        name,
        rollout[name],
        whole,
      )
  if rollout.temperature < _LOW_TEMPERATURE:
    logging.warning(
      "--config.rollout.temperature: %s; groups will hardly differ: expected"
      " about 1",
      rollout.temperature,
    )


def _name_the_idle(config, default):
  """One line with the changed keys that have no effect beside others."""
  changed = [n for n in RULES if _get(config, n) != _get(default, n)]
  found = []
  for idle, why, names in _without_effect(config):
    if idle:
      known = {name for names, _ in found for name in names}
      mine = [n for n in changed if _within(n, names) and n not in known]
      if mine:
        found.append((mine, why))
  if found:
    logging.warning(
      "config: without effect are %s",
      "; ".join(f"{', '.join(names)} (as {why})" for names, why in found),
    )


def _without_effect(config) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
  """(whether it is so, why, keys or sections) of what a config leaves idle."""
  t = config.train
  idle = methods.METHODS[config.method].IDLE
  yield True, f"method={config.method}", idle
  yield (
    config.method != "sft" and not config.warm_start.steps,
    "method is not sft and warm_start.steps=0",
    ("sft",),
  )
  yield (
    not config.warm_start.steps,
    "warm_start.steps=0",
    (
      "warm_start.trajectories", "warm_start.reuse",
      "warm_start.learning_rate",
    ),
  )
  yield config.optimizer != "natural", "optimizer=adam", ("natural",)
  yield config.optimizer == "natural", "optimizer=natural", state_lib.ADAM
  yield (
    not t.natural_every,
    "train.natural_every=0",
    ("train.natural_groups", "train.natural_directions",
     "train.natural_damping"),
  )  # fmt: skip
  yield (
    config.select == "random",
    "select=random",
    ("pivots.threshold", "pivots.keep_all_fail", "pivots.min_std"),
  )
  yield (
    config.select == "mixed",
    "select=mixed",
    ("pivots.threshold", "pivots.keep_all_fail"),
  )
  yield (
    t.updates_per_batch == 1,
    "train.updates_per_batch=1",
    ("train.clip_low", "train.clip_high"),
  )
  yield (
    t.parallel != "sharded",
    f"train.parallel={t.parallel}",
    ("train.mesh",),
  )
  yield not t.lora_rank, "train.lora_rank=0", _LORA
  yield not t.keep_best, "train.keep_best=0", ("train.best_by",)
  yield not t.kl_coef, "train.kl_coef=0, but for the log", ("train.kl",)
  yield not t.watch_prompts, "train.watch_prompts=0", ("train.watch_actions",)
  yield (
    config.engine.name == "jax",
    "engine.name=jax",
    (
      "engine.urls", "engine.router", "engine.weights", "engine.tolerance",
      "engine.deterministic", "engine.stale", "engine.rows_per_request",
      "engine.concurrency", "engine.timeout", "engine.retries",
      "engine.patience",
    ),
  )  # fmt: skip
  yield (
    config.engine.name == "sglang",
    "engine.name=sglang",
    ("engine.batch_tokens", "engine.batch_rows"),
  )
  yield (
    not config.evaluation.tasks,
    "evaluation.tasks=0",
    ("evaluation.max_turns",),
  )
  yield from _verifiers_without_effect(config)


_LORA = ("train.lora_alpha", "train.lora_targets")


def _verifiers_without_effect(config):
  v = config.verifier
  used = "strict" if config.reward == "strict" else v.name
  yield (
    config.reward == "strict",
    "reward=strict",
    ("verifier.name", "verifier.setting"),
  )
  yield (
    True,
    f"the verifier is {used}",
    tuple(f"verifier.{name}" for name in verify.VERIFIERS if name != used),
  )
  yield (
    used != "terminus_judge" or not v.terminus_judge.enable_llm_judge,
    "no judge is asked",
    ("verifier.judge", *_JUDGED),
  )
  yield (
    not v.terminus_judge.check_twice_swap,
    "verifier.terminus_judge.check_twice_swap=False",
    ("verifier.terminus_judge.reward_if_swap_fails",),
  )
  yield (
    not v.terminus_judge.enable_string_similarity,
    "verifier.terminus_judge.enable_string_similarity=False",
    ("verifier.terminus_judge.string_similarity_threshold",),
  )
  yield (
    v.swe_pivot.reward_mode == "binary",
    "verifier.swe_pivot.reward_mode=binary",
    _CONTINUOUS,
  )
  yield (
    not v.swe_pivot.enable_argument_similarity,
    "verifier.swe_pivot.enable_argument_similarity=False",
    _COMPARED,
  )


_JUDGED = (
  "verifier.terminus_judge.check_twice_swap",
  "verifier.terminus_judge.reward_if_swap_fails",
  "verifier.terminus_judge.judge_equal_label",
  "verifier.terminus_judge.judge_not_equal_label",
  "verifier.terminus_judge.judge_fallback_reward",
)
_CONTINUOUS = (
  "verifier.swe_pivot.similarity_threshold",
  "verifier.swe_pivot.enable_diff_size_shaping",
  "verifier.swe_pivot.diff_size_alpha",
)
_COMPARED = (
  "verifier.swe_pivot.similarity_threshold",
  "verifier.swe_pivot.similarity_full_credit",
  "verifier.swe_pivot.pattern_threshold",
  "verifier.swe_pivot.edit_scope",
)


def _within(name, names):
  return any(name == n or name.startswith(f"{n}.") for n in names)


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
  asks = config.terminus_judge.enable_llm_judge
  if config.name == "terminus_judge" and asks and not config.judge.url:
    raise errors.InputError(
      "--config.verifier.judge.url: not given; expected an OpenAI-compatible"
      " address, or --config.verifier.terminus_judge.enable_llm_judge=False"
    )


def _check_paths(config, here):
  if here and config.data.format != "world" and not config.data.path:
    raise errors.InputError(
      "--config.data.path: not given; expected a file or folder of"
      " trajectories, or --config.data.format=world"
    )
  for name in ("data.path", "model.path", "model.chat_template"):
    value = _get(config, name)
    if value and not pathlib.Path(value).exists():
      raise errors.InputError(
        f"--config.{name}: {value}; expected a file or folder that exists"
      )
  importers.read_tools(config.data.tools)


def _get(config, name):
  for part in name.split("."):
    config = config[part]
  return config
