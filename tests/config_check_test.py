"""Every key has a rule; every nonsense value is refused, in one line."""

import ast
import pathlib
import re

import pytest

from configs import search
from configs import swe
from configs import tau
from configs import terminal
from pivotrl_jax import config_check
from pivotrl_jax import errors
from pivotrl_jax.train import parallel

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = (search, swe, tau, terminal)
EMPTY = "verifier.terminal_multi_harness.ignored_argument_keys_by_tool"


def _flat(values, before=""):
  """Dotted names of the leaves; an empty section is one."""
  names = set()
  for key, value in values.items():
    inner = isinstance(value, dict) and value
    names |= _flat(value, f"{before}{key}.") if inner else {before + key}
  return names


def _changed(changes, config=swe, arg="tiny"):
  config = config.get_config(arg)
  for name, value in changes.items():
    section, _, key = name.rpartition(".")
    at = config
    for part in filter(None, section.split(".")):
      at = at[part]
    with at.ignore_type():
      at[key] = value
  return config


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("arg", ["", "tiny", "paper"])
def test_every_key_has_a_rule_and_every_default_keeps_it(config, arg):
  values = config.get_config(arg)
  names = _flat(values.to_dict()) - {"verifier.strict"}  # It has no options.
  assert names == set(config_check.RULES)
  for name, rule in config_check.RULES.items():
    assert rule.holds(config_check._get(values.to_dict(), name)), name


WHOLE = (-1, 2.5, float("nan"), "3", True, None)
REAL = (-0.1, float("nan"), float("inf"), "x", None)
NONSENSE = {
  "world": ("moon", "tau", 3),  # Of another domain, too.
  "seed": WHOLE,
  "optimizer": ("sgd", 3),
  "data.trajectories": WHOLE,
  "data.max_prompt_tokens": (0, *WHOLE),
  "data.successful_only": (1, "yes"),
  "engine.batch_tokens": (0, *WHOLE),
  "engine.batch_rows": (0, *WHOLE),
  "model.remat": (1, None, "some"),
  "warm_start.steps": WHOLE,
  "warm_start.trajectories": (0, *WHOLE),
  "warm_start.learning_rate": (0.0, *REAL),
  "profile.group_size": (1, *WHOLE),
  "profile.trajectories": WHOLE,
  "profile.trajectories_per_batch": (0, *WHOLE),
  "profile.part": ("3", "0/3", "4/3", "1/2/3", 1, None),
  "train.keep_best": WHOLE,
  "train.best_by": ("", None),
  "profile.again_every": WHOLE,
  "profile.again_below": (1.1, *REAL),
  "pivots.threshold": (0.0, 1.5, *REAL),
  "pivots.count": WHOLE,
  "pivots.min_std": (0.5, 1.0, *REAL),
  "verifier.name": ("nobody", None),
  "verifier.setting": ("other",),
  "verifier.judge.url": ("localhost:80", 3),
  "verifier.judge.timeout": (0.0, *REAL),
  "verifier.judge.retries": WHOLE,
  "verifier.judge.concurrency": (0, *WHOLE),
  "verifier.judge.max_tokens": (0, *WHOLE),
  "verifier.judge.most_failed": (1.1, *REAL),
  "verifier.single_step.word_count_similarity_threshold": (1.1, *REAL),
  "verifier.single_step.message_similarity_threshold": (0.6, *REAL),
  "verifier.single_step.floating_point_comparison_threshold": REAL,
  "verifier.single_step.allow_subset": ("no",),
  "verifier.single_step.parallel_tool_call_reward_mode": ("f2",),
  "verifier.swe_pivot.reward_mode": ("ternary",),
  "verifier.swe_pivot.similarity_threshold": (1.1, *REAL),
  "verifier.swe_pivot.similarity_full_credit": (1.1, *REAL),
  "verifier.swe_pivot.diff_size_alpha": (1.1, *REAL),
  "verifier.swe_pivot.edit_scope": ("lines",),
  "verifier.terminus_judge.string_similarity_threshold": (1.1, *REAL),
  "verifier.terminus_judge.reward_if_swap_fails": (1.1, *REAL),
  "verifier.terminus_judge.judge_equal_label": ("", " ", None),
  "verifier.terminus_judge.judge_not_equal_label": ("[[A=B]]", ""),
  "verifier.terminus_judge.judge_fallback_reward": (1.1, *REAL[:-1]),
  "verifier.terminal_multi_harness.query_string_similarity_threshold": (
    1.1, *REAL[:-1],
  ),
  EMPTY: ([1], {"f": "x"}, {"f": [1]}),
  "rollout.pivots_per_step": (0, *WHOLE),
  "rollout.group_size": (1, *WHOLE),
  "rollout.max_tokens": (0, *WHOLE),
  "rollout.cut_off": ("drop",),
  "rollout.temperature": (0.0, 1e-6, *REAL),
  "rollout.top_p": (0.0, 1.1, *REAL),
  "sft.turns": (0, *WHOLE),
  "method": ("dpo", 3),
  "e2e.tasks": WHOLE,
  "e2e.tasks_per_step": (0, *WHOLE),
  "e2e.max_turns": (0, *WHOLE),
  "train.keep_groups": WHOLE,
  "train.steps": WHOLE,
  "train.learning_rate": REAL,
  "train.warmup_steps": WHOLE,
  "train.weight_decay": REAL,
  "train.clip_norm": REAL,
  "train.min_std": (0.5, *REAL),
  "train.clip_low": (-1, 1.1, *REAL),
  "train.clip_high": REAL,
  "train.kl": ("k4",),
  "train.kl_coef": REAL,
  "train.importance_cap": REAL,
  "train.importance_floor": (0.1, *REAL),  # Without a cap.
  **{f"train.mesh.{axis}": (0, -2, *WHOLE[1:]) for axis in parallel.AXES},
  "train.branch_tokens": WHOLE,
  "train.lora_rank": WHOLE,
  "train.lora_alpha": (0, *REAL),
  "train.lora_targets": ("", "q_proj,x", 3),
  "train.router_aux_loss_coef": REAL,
  "train.router_count": ("tokens", 1),
  "train.freeze_router": (1, None),
  "train.replay_routes": ("yes",),
  "train.updates_per_batch": (0, *WHOLE),
  "train.micro_batches": (0, *WHOLE),
  "train.batch_tokens": WHOLE,
  "train.logits_chunk": (0, *WHOLE),
  "train.save_every": (0, *WHOLE),
  "train.keep_checkpoints": (0, *WHOLE),
  "train.log_every": (0, *WHOLE),
  "train.watch_prompts": WHOLE,
  "train.watch_actions": (0, *WHOLE),
  "evaluation.tasks": WHOLE,
  "evaluation.seeds": (0, *WHOLE),
  "evaluation.temperature": REAL,
  "evaluation.max_turns": (0, *WHOLE),
  "evaluation.questions": WHOLE,
  "report.pivots": WHOLE,
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name):
  for value in NONSENSE[name]:
    with pytest.raises(errors.InputError) as refused:
      config_check.check(_changed({name: value}))
    line = str(refused.value)
    assert line.startswith(f"--config.{name}: "), (value, line)
    assert "expected" in line and "\n" not in line


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"train.importance_floor": 0.5, "train.importance_cap": 0.2},
     ("train.importance_floor: 0.5", "train.importance_cap=0.2")),
    ({"train.kl": "k1", "train.kl_coef": 0.1}, ("train.kl: 'k1'", "k2 or k3")),
    ({"verifier.swe_pivot.reward_mode": "continuous",
      "verifier.swe_pivot.similarity_threshold": 0.9,
      "verifier.swe_pivot.similarity_full_credit": 0.8},
     ("similarity_threshold: 0.9", "0.8")),
    ({"train.lora_rank": 4, "optimizer": "natural"},
     ("train.lora_rank: 4", "optimizer=adam")),
    ({"train.parallel": "sharded", "train.mesh.expert": 3},
     ("train.mesh: data=1, fsdp=-1, expert=3, tensor=1, on 8 devices",
      "product is 8")),
    ({"train.parallel": "sharded", "train.mesh.data": -1},
     ("data=-1, fsdp=-1", "at most one of them -1")),
  ],
)  # fmt: skip
def test_what_contradicts_is_refused(changes, parts):
  with pytest.raises(errors.InputError) as refused:
    config_check.check(_changed(changes))
  assert all(part in str(refused.value) for part in parts)


@pytest.mark.parametrize(
  ("changes", "part"),
  [
    ({"verifier.name": "terminal_multi_harness"}, "world=terminal_calls"),
    ({"world": "terminal_calls"}, "terminal_multi_harness, or"),
  ],
)
def test_a_verifier_of_other_actions_than_the_world_s_is_refused(changes, part):
  config = _changed(changes, terminal)
  with pytest.raises(errors.InputError, match=part):
    config_check.check(config)
  config.reward = "strict"
  config_check.check(config)
  config.reward, config.data.path = "functional", __file__
  config_check.check(config)  # Data of one's own.


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"data.path": __file__}, "config.method: 'e2e'; expected one that"),
    ({"optimizer": "natural"}, "optimizer: .*; expected adam where method=e2e"),
    ({"rollout.temperature": 0.0}, "rollout.temperature"),
  ],
)
def test_what_episodes_cannot_be_is_refused(changes, line):
  with pytest.raises(errors.InputError, match=line):
    config_check.check(_changed({"method": "e2e"} | changes))


@pytest.mark.parametrize(
  "changes",
  [
    {"train.kl": "k1"},  # In the log alone.
    {"method": "sft", "rollout.temperature": 0.0},
    {"method": "e2e", "e2e.tasks": 9},
    {"train.importance_cap": 5.0, "train.importance_floor": 0.1},
    {EMPTY: {"bash": ["timeout"]}},
    {"verifier.terminus_judge.judge_fallback_reward": 0.5},
    {"train.clip_norm": 0, "train.steps": 0, "evaluation.tasks": 0},
  ],
)
def test_what_makes_sense_is_taken(changes):
  config_check.check(_changed(changes))


def _warnings(caplog, changes):
  caplog.clear()
  with caplog.at_level("WARNING"):
    config_check.check(_changed(changes), swe.get_config("tiny"))
  return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
  ("changes", "want"),
  [
    ({}, []),
    ({"train.clip_low": 0.2}, []),  # As it was.
    ({"train.clip_low": 0.1, "train.updates_per_batch": 2}, []),
    ({"train.clip_low": 0.1},
     ["config: without effect are train.clip_low (as"
      " train.updates_per_batch=1)"]),
    ({"select": "random", "pivots.threshold": 0.5, "train.clip_high": 0.3,
      "train.kl": "k2", "verifier.single_step.allow_subset": True},
     ["config: without effect are pivots.threshold (as select=random);"
      " train.clip_high (as train.updates_per_batch=1); train.kl (as"
      " train.kl_coef=0, but for the log); verifier.single_step.allow_subset"
      " (as the verifier is swe_pivot)"]),
    ({"method": "sft", "train.clip_low": 0.1, "train.advantage": "loo"},
     ["config: without effect are train.advantage, train.clip_low (as"
      " method=sft)"]),
    ({"method": "e2e", "rollout.pivots_per_step": 3, "select": "mixed"},
     ["config: without effect are select, rollout.pivots_per_step (as"
      " method=e2e)"]),
    ({"e2e.max_turns": 3},
     ["config: without effect are e2e.max_turns (as method=pivotrl)"]),
    ({"train.lora_alpha": 1.0},
     ["config: without effect are train.lora_alpha (as train.lora_rank=0)"]),
    ({"train.mesh.tensor": 2},
     ["config: without effect are train.mesh.tensor (as"
      " train.parallel=jit)"]),
    ({"verifier.judge.model": "m"},
     ["config: without effect are verifier.judge.model (as no judge is"
      " asked)"]),
    ({"rollout.top_p": 0.9},
     ["--config.rollout.top_p: 0.9; training takes log-probs of the whole"
      " distribution, of which these samples are not: expected 1"]),
    ({"rollout.temperature": 0.1},
     ["--config.rollout.temperature: 0.1; groups will hardly differ: expected"
      " about 1"]),
    ({"rollout.temperature": 0.1, "method": "sft"}, []),
  ],
)  # fmt: skip
def test_doubts_are_one_line_each(caplog, changes, want):
  assert _warnings(caplog, changes) == want


def _texts(path):
  """The string constants of a module that are no docstrings."""
  tree = ast.parse(path.read_text())
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  skipped = {
    id(node.body[0].value)
    for node in ast.walk(tree)
    if isinstance(node, documented)
    and node.body
    and isinstance(node.body[0], ast.Expr)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      if id(node) not in skipped:
        yield node.value


def test_messages_name_keys_that_exist():
  values = swe.get_config().to_dict()
  sections = "|".join(k for k, v in values.items() if isinstance(v, dict))
  # Without "config." before it a name counts where it is given a value.
  named = re.compile(
    rf"\bconfig\.(\w+(?:\.\w+)*)|(?<![\w./])((?:{sections})\.[\w.]+)="
  )
  places = [*ROOT.glob("pivotrl_jax/**/*.py"), ROOT / "README.md"]
  found = 0
  for path in places:
    texts = _texts(path) if path.suffix == ".py" else [path.read_text()]
    for text in texts:
      for match in named.finditer(text):
        at, name = values, match[1] or match[2]
        if name in ("json", "x.y", "verifier.NAME.OPTION") or (
          name.startswith("model.model_kwargs.")
        ):
          continue  # A file; any key; another program's.
        found += 1
        for part in name.split("."):
          assert isinstance(at, dict) and part in at, (path.name, match[0])
          at = at[part]
  assert found > 60
