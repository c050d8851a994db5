"""The stages of a run: what each reads, and so what its outputs depend on.

A stage's key holds the values and contents that decide what it makes, and
nothing else: a stage whose key is unchanged need not run again. Which runs
can share what a stage made is told by `lineage`, before any of them started.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any, Literal

from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.engines import policy
from pivotrl_jax.envs import worlds
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import methods
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.verifiers import verify


@dataclasses.dataclass(frozen=True)
class Stage:
  """What a stage is to the others.

  Attributes:
    function: `module:name`, called as `name(config, workdir)`.
    config: sections and keys of the config that decide what it makes.
    inputs: files and folders of the workdir that it reads.
    outputs: those that are whole when it ends.
    resumes: what an interrupted run of it leaves, and goes on from.
    logs: what it writes meanwhile.
    but: keys of `config` that have no effect on this stage.
    grows: keys whose new value it goes on to from what it made.
    changed: what another key means for what was made: "refuse" (it is costly:
      only --redo makes it anew), "move" (to previous/) or "replace".
    shared: whether all processes of a run over several hosts take part; else
      they wait for the first.
  """

  function: str
  config: tuple[str, ...]
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  resumes: tuple[str, ...] = ()
  logs: tuple[str, ...] = ()
  but: tuple[str, ...] = ()
  grows: tuple[str, ...] = ()
  changed: Literal["refuse", "move", "replace"] = "move"
  shared: bool = False


# What both policies are evaluated with.
_EVALUATION = (
  "data.max_prompt_tokens", "data.reasoning", "domain", "world", "model",
  "rollout", "evaluation", "seed",
)  # fmt: skip
_NOT_EVALUATION = (
  "rollout.pivots_per_step", "rollout.group_size", "rollout.cut_off",
  "rollout.temperature", "data.empty_thinking", "data.format", "data.path",
)  # fmt: skip

STAGES = {
  "import": Stage(
    "pivotrl_jax.data.importers:run",
    config=("data", "domain", "world", "seed"),
    but=(
      "data.max_prompt_tokens", "data.successful_only", "data.reasoning",
      "data.empty_thinking",
    ),
    inputs=(),
    outputs=("trajectories.jsonl",),
  ),
  "candidates": Stage(
    "pivotrl_jax.pivots.candidates:run",
    config=(
      "data.successful_only", "data.reasoning", "data.empty_thinking",
      "model.path", "model.chat_template", "model.template_kwargs",
    ),
    inputs=("trajectories.jsonl",),
    outputs=("candidates.jsonl",),
  ),
  "warm_start": Stage(
    "pivotrl_jax.train.sft:run_warm_start",
    config=(
      "data.max_prompt_tokens", "data.reasoning", "data.empty_thinking",
      "model", "warm_start", "sft", "seed", "train.freeze_router",
    ),
    but=("warm_start.reuse",),
    inputs=("trajectories.jsonl", "candidates.jsonl"),
    outputs=("warm_start",),
    changed="refuse",
  ),
  "profile": Stage(
    "pivotrl_jax.pivots.profile:run",
    config=(
      "data.max_prompt_tokens", "data.reasoning", "model", "profile",
      "rollout", "verifier", "reward", "seed", "warm_start",
    ),
    but=(
      "rollout.pivots_per_step", "rollout.group_size", "rollout.cut_off",
      "warm_start.learning_rate", "pivots.min_std", "data.empty_thinking",
      "profile.again_every", "profile.again_below",
    ),
    inputs=("trajectories.jsonl", "candidates.jsonl", "warm_start"),
    outputs=("profiles.jsonl",),
    resumes=("profiles.jsonl.partial",),
    changed="refuse",
    shared=True,
  ),
  "select": Stage(
    "pivotrl_jax.pivots.select:run",
    config=("pivots", "select", "seed"),
    inputs=("profiles.jsonl",),
    outputs=("pivots.jsonl",),
  ),
  "train": Stage(  # What it reads, its method says: see `stage`.
    "pivotrl_jax.train.loop:run",
    **methods.METHODS["pivotrl"].READS,
    outputs=("export",),
    resumes=("checkpoints",),
    logs=("metrics.jsonl", "rollouts.jsonl", "profiles", "tb", "adapter"),
    grows=("train.steps",),
    changed="refuse",
    shared=True,
  ),
  "baseline": Stage(
    "pivotrl_jax.evaluation.evaluate:run_base",
    config=(*_EVALUATION, "warm_start.steps"),
    but=_NOT_EVALUATION,
    inputs=("warm_start",),
    outputs=("base_evals.jsonl",),
    shared=True,
  ),
  "evaluate": Stage(
    "pivotrl_jax.evaluation.evaluate:run",
    config=_EVALUATION,
    but=(*_NOT_EVALUATION, "model.path"),
    inputs=("export", "base_evals.jsonl"),
    outputs=("evals.jsonl",),
    shared=True,
  ),
  "report": Stage(
    "pivotrl_jax.report.write:run",
    config=("domain", "pivots.threshold", "pivots.min_std", "report"),
    inputs=(
      "trajectories.jsonl", "candidates.jsonl", "profiles.jsonl",
      "pivots.jsonl", "metrics.jsonl", "rollouts.jsonl", "evals.jsonl",
      "skipped.jsonl",
    ),
    outputs=("report",),
    changed="replace",
  ),
  "export": Stage(
    "pivotrl_jax.pivots.export:run",
    config=(),
    inputs=("trajectories.jsonl", "candidates.jsonl", "pivots.jsonl"),
    outputs=("pivot_rows.jsonl",),
    changed="replace",
  ),
  "rescore": Stage(
    "pivotrl_jax.pivots.rescore:run",
    config=(
      "data.reasoning", "data.empty_thinking", "model.path",
      "model.chat_template", "model.template_kwargs", "verifier", "reward",
      "select", "pivots.threshold", "pivots.keep_all_fail", "pivots.min_std",
    ),
    but=("data.empty_thinking",),  # Of demonstrations.
    inputs=(
      "trajectories.jsonl", "candidates.jsonl", "profiles.jsonl",
      "rollouts.jsonl",
    ),
    outputs=("rescored",),
  ),
  "dry_run": Stage(  # Never done: its compilers are no part of a key.
    "pivotrl_jax.dry_run.predict:run",
    config=("dry_run",),
    inputs=(),
    outputs=("dry_run",),
    changed="replace",
  ),
  "serve": Stage(  # It makes nothing, hence is never done.
    "pivotrl_jax.engines.server:run",
    config=("model",),
    inputs=(),
    outputs=(),
    changed="replace",
  ),
}  # fmt: skip
# Stages that run only when they are asked for.
BY_NAME = ("export", "rescore", "dry_run", "serve")
DEFAULT = tuple(s for s in STAGES if s not in BY_NAME)

# Sections and keys that decide where, how fast and how often, and what is
# said meanwhile: another value changes no number by more than rounding. The
# address of a judge is one, its model is not.
HARMLESS = (
    "engine", "model.attention", "model.remat", "model.scan_layers",
    "profile.parts",
    "profile.trajectories_per_batch", "train.batch_tokens",
    "train.best_by", "train.branch_tokens", "train.keep_best",
    "train.keep_checkpoints", "train.keep_groups", "train.log_every",
    "train.logits_chunk",
    "train.micro_batches", "train.mismatch_warning", "train.natural_damping",
    "train.natural_directions", "train.natural_every", "train.natural_groups",
    "train.mesh", "train.parallel", "train.save_every",
    "train.watch_actions",
    "train.watch_every", "train.watch_prompts",
    "verifier.judge.concurrency", "verifier.judge.most_failed",
    "verifier.judge.retries",
    "verifier.judge.timeout", "verifier.judge.url",
)  # fmt: skip

# Inputs that a run may lack: without a warm start, without a world.
OPTIONAL = (
    "warm_start", "export", "metrics.jsonl", "rollouts.jsonl", "evals.jsonl",
    "skipped.jsonl", "profiles.jsonl", "pivots.jsonl",
)  # fmt: skip


def stage(config: Any, name: str) -> Stage:
  """The stage `name` as this config has it."""
  found = STAGES[name]
  if name == "train":
    reads = methods.METHODS[config.method].READS
    return dataclasses.replace(found, **reads)
  return found


def default(config: Any) -> tuple[str, ...]:
  """The stages of a run that names none.

  Those that only make what another method trains on are left out, and after
  a part of a profile those that want the whole.
  """
  if config.profile.part:
    return (*needs(config, "profile"), "profile")
  wanted = {"train", *needs(config, "train")}
  return tuple(
    name
    for name in DEFAULT
    if name in wanted or name not in ("warm_start", "profile", "select")
  )


def reads(config: Any, name: str) -> dict[str, Any]:
  """Config values that decide what a stage makes: `section.key` -> value.

  A place outside the workdir (the data, the model, a checkpoint) counts by
  the hash of its contents, so that neither its name nor its times matter.

  Args:
    config: a resolved config.
    name: of a stage.

  Raises:
    InputError: `train.init` names no checkpoint.
  """
  return _contents(given(config, name), {})


def given(config: Any, name: str) -> dict[str, Any]:
  """`reads` with places as the config names them."""
  found = stage(config, name)
  return {
    key: value
    for key, value in flat(config.to_dict()).items()
    if _within(key, found.config)
    and not _within(key, found.grows)
    and not is_harmless(config, name, key)
  }


def grown(config: Any, name: str) -> dict[str, Any]:
  """Values of the keys that a stage goes on to, such as `train.steps`."""
  values = flat(config.to_dict())
  return {key: values[key] for key in stage(config, name).grows}


def key(
  config: Any,
  workdir: pathlib.Path,
  name: str,
  *,
  expected: Mapping[str, str] | None = None,
  init: str | None = None,
) -> dict[str, Any]:
  """All that decides what a stage makes: `reads`, and its inputs' contents.

  Args:
    config: a resolved config.
    workdir: where its inputs are.
    name: of a stage.
    expected: input -> hash, of inputs that are about to be made again.
    init: what `train.init` held when it was taken up; None if it was not yet.

  Returns:
    `section.key` -> value and input -> hash, None where it is absent.
  """
  known = {"train.init": init} if init else {}
  values = _contents(given(config, name), known)
  expected = expected or {}
  return values | {
    file: expected.get(file) or workdir_lib.fingerprint(workdir / file)
    for file in inputs(config, name)
  }


def lineage(config: Any, name: str) -> dict[str, Any]:
  """All that decides what a stage makes, without its workdir.

  Two runs whose lineages of a stage are equal make the same there, and can
  share it.

  Args:
    config: a resolved config.
    name: of a stage.

  Returns:
    `stage: section.key` -> value, for the stage and all that it needs.
  """
  return {
    f"{each}: {key}": value
    for each in (*needs(config, name), name)
    for key, value in (reads(config, each) | grown(config, each)).items()
  }


def inputs(config: Any, name: str) -> tuple[str, ...]:
  """What a stage reads of the workdir under this config."""
  names = stage(config, name).inputs
  return tuple(n for n in names if n != "warm_start" or config.warm_start.steps)


def makers(config: Any, name: str) -> tuple[str, ...]:
  """The stages that make what a stage reads."""
  wanted = set(inputs(config, name))
  return tuple(
    s for s, made in STAGES.items() if wanted & {*made.outputs, *made.logs}
  )


def needs(config: Any, name: str) -> tuple[str, ...]:
  """The makers of what a stage reads, and of what they read, in order."""
  found: set[str] = set()
  for each in reversed(STAGES):
    if each == name or each in found:
      found |= set(makers(config, each))
  return tuple(s for s in STAGES if s in found)


def reads_model(config: Any, name: str) -> bool:
  """Whether a stage needs the policy or its tokenizer."""
  return any(k.partition(".")[0] == "model" for k in stage(config, name).config)


def shown(key: str) -> str:
  """How a line names what it says the value of."""
  files = {file for stage in STAGES.values() for file in stage.inputs}
  return f"contents of {key}" if key in files | _OUTSIDE.keys() else key


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
  """`{"train": {"steps": 3}}` -> `{"train.steps": 3}`."""
  found = {}
  for name, value in values.items():
    if isinstance(value, dict):
      found |= flat(value, f"{before}{name}.")
    else:
      found[before + name] = value
  return found


def is_harmless(config: Any, name: str, key: str) -> bool:
  """Whether no value of a key changes what a stage makes."""
  but = stage(config, name).but
  return _within(key, (*HARMLESS, *but, *_idle(config, name)))


def _contents(values, known):
  """`values`, places as what they hold: `known`, or else read."""
  found = dict(values)
  for key, read in _OUTSIDE.items():
    if key in found:
      found[key] = known.get(key) or read(found[key])
  return json.loads(json.dumps(found))  # As it is when read from a file.


def _idle(config, name):
  """Sections and keys without effect under this config."""
  used = "strict" if config.reward == "strict" else config.verifier.name
  idle = [f"verifier.{v}" for v in verify.VERIFIERS if v != used]
  if not config.verifier[used].get("enable_llm_judge"):
    idle.append("verifier.judge")
  if config.reward == "strict":
    idle.append("verifier.name")
  if config.optimizer == "natural":
    idle += state_lib.ADAM
  else:
    idle.append("natural")
  # Switches that are off: runs from before there were any have none.
  idle += [f"train.{k}" for k in policy.OF_EXPERTS if not config.train[k]]
  if not config.train.lora_rank:
    idle += ["train.lora_rank", "train.lora_alpha", "train.lora_targets"]
  if not config.profile.part:
    idle.append("profile.part")
  if not config.train.router_aux_loss_coef:
    idle.append("train.router_count")
  if not config.warm_start.reuse:
    idle.append("warm_start.reuse")
  if not config.warm_start.steps:
    idle += ["warm_start.trajectories", "warm_start.learning_rate"]
  elif name not in ("candidates", "warm_start", "rescore"):
    idle.append("model.path")  # Its contents count by what was made of them.
  if name == "train":
    idle += methods.METHODS[config.method].idle(config)
  if worlds.of(config):
    idle += ["data.path", "data.tools"]
  elif name == "import":
    idle += ["seed", "world"]
  elif name in ("baseline", "evaluate"):
    idle += ["domain", "world"]
  return idle


def _within(key, names):
  return any(key == name or key.startswith(name + ".") for name in names)


def _model(path):
  return workdir_lib.fingerprint(pathlib.Path(path or policy.MINI).expanduser())


def _data(path):
  return workdir_lib.fingerprint(pathlib.Path(path).expanduser())


def _file(path):
  return _data(path) if path else ""


def _checkpoint(place):
  return checkpoints.contents(checkpoints.find(place)) if place else ""


# Keys that name places outside the workdir -> the hash of what is there.
_OUTSIDE = {
  "data.path": _data,
  "data.tools": _file,
  "model.path": _model,
  "model.chat_template": _file,
  "train.init": _checkpoint,
}
