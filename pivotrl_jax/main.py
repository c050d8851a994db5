"""Runs the stages of a run, in order.

  python -m pivotrl_jax.main --config=configs/swe.py --workdir=DIR

Bad input of any kind ends in one line on standard error and status 2.
"""

import importlib
import json
import logging as py_logging
import os
import pathlib
import sys
import time

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from pivotrl_jax import config_check
from pivotrl_jax import errors
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, such as configs/swe.py or configs/swe.py:tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where artifacts go.")
_RECORD = flags.DEFINE_string(
  "record", None, "File to which `serve` appends every exchange."
)
_STAGES = flags.DEFINE_list(
  "stages", None, "Stages to run, in order; all by default."
)

# Stage -> (function, config sections it reads, inputs, outputs, what an
# interrupted run of it resumes from).
STAGES = {
    "import": (
        "pivotrl_jax.data.importers:run", ("data", "domain", "seed"),
        (), ("trajectories.jsonl",), (),
    ),
    "candidates": (
        "pivotrl_jax.pivots.candidates:run", ("data", "model"),
        ("trajectories.jsonl",), ("candidates.jsonl",), (),
    ),
    "warm_start": (
        "pivotrl_jax.train.sft:run_warm_start",
        ("data", "model", "warm_start", "sft", "seed"),
        ("trajectories.jsonl", "candidates.jsonl"), ("warm_start",), (),
    ),
    "profile": (
        "pivotrl_jax.pivots.profile:run",
        ("data", "model", "profile", "rollout", "verifier", "reward", "seed",
         "warm_start"),
        ("trajectories.jsonl", "candidates.jsonl", "warm_start"),
        ("profiles.jsonl",), ("profiles.jsonl.partial",),
    ),
    "select": (
        "pivotrl_jax.pivots.select:run", ("pivots", "select", "seed"),
        ("profiles.jsonl",), ("pivots.jsonl",), (),
    ),
    "train": (
        "pivotrl_jax.train.loop:run",
        ("data", "model", "rollout", "verifier", "reward", "seed", "method",
         "optimizer", "train", "sft", "warm_start"),
        ("trajectories.jsonl", "candidates.jsonl", "pivots.jsonl",
         "warm_start"),
        ("export", "metrics.jsonl"),
        ("checkpoints", "metrics.jsonl", "tb", "export"),
    ),
    "evaluate": (
        "pivotrl_jax.evaluation.evaluate:run",
        ("domain", "model", "rollout", "evaluation", "seed", "warm_start",
         "data"),
        ("export", "warm_start"), ("evals.jsonl",), (),
    ),
    "report": (
        "pivotrl_jax.report.write:run", ("pivots", "report"),
        ("trajectories.jsonl", "candidates.jsonl", "profiles.jsonl",
         "pivots.jsonl", "metrics.jsonl", "evals.jsonl", "skipped.jsonl"),
        ("report",), (),
    ),
    "export": (
        "pivotrl_jax.pivots.export:run", (),
        ("trajectories.jsonl", "candidates.jsonl", "pivots.jsonl"),
        ("pivot_rows.jsonl",), (),
    ),
}  # fmt: skip
# Stages that run only when they are asked for.
_BY_NAME = ("export",)
DEFAULT_STAGES = tuple(s for s in STAGES if s not in _BY_NAME)
# Stages that make nothing, hence are never done.
_SERVICES = {"serve": "pivotrl_jax.engines.server:run"}


def run(config, path: pathlib.Path, stages: list[str]) -> None:
  """Runs `stages` in `path`; those already done are skipped."""
  with workdir_lib.opened(path):
    described = workdir_lib.describe(config.to_dict())
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    records.write_text(path / "config.json", [text])
    for stage in stages:
      if stage == "warm_start" and not config.warm_start.steps:
        continue
      if stage in _SERVICES:
        _function(_SERVICES[stage])(config, path)
        continue
      _run_stage(config, path, stage)


def _run_stage(config, path, stage):
  function, sections, inputs, outputs, partial = STAGES[stage]
  values = config.to_dict()
  key = {
    "config": workdir_lib.digest({s: values[s] for s in sections}),
    "inputs": {n: workdir_lib.fingerprint(path / n) for n in inputs},
    "outside": [
      workdir_lib.stat_key(place)
      for section, place in (
        ("data", config.data.path),
        ("model", config.model.path),
        ("model", config.model.chat_template),
      )
      if section in sections and place
    ],
  }
  if workdir_lib.is_done(path, stage, key):
    logging.info("%s: done before", stage)
    return
  missing = [
      n for n in inputs
      if not (path / n).exists() and n not in _OPTIONAL
  ]  # fmt: skip
  if missing:
    raise errors.InputError(
      f"--stages={stage}: {path / missing[0]} is missing; expected the"
      " stages before it to have run"
    )
  workdir_lib.begin(path, stage, key, list(partial))
  started = time.monotonic()
  _function(function)(config, path)
  workdir_lib.mark_done(path, stage, key, list(outputs))
  seconds = time.monotonic() - started
  with open(path / "timings.jsonl", "a", encoding="utf-8") as out:
    out.write(json.dumps({"stage": stage, "seconds": round(seconds, 2)}) + "\n")
  logging.info("%s: %.1f s", stage, seconds)


def _function(place):
  module, name = place.split(":")
  return getattr(importlib.import_module(module), name)


# Inputs that a run may lack: without a warm start, without a world.
_OPTIONAL = ("warm_start", "export", "metrics.jsonl", "evals.jsonl",
             "skipped.jsonl", "profiles.jsonl", "pivots.jsonl")  # fmt: skip


def _ours(record) -> bool:
  """Our own lines, and others' warnings."""
  return (
    "pivotrl_jax" in record.pathname or record.levelno >= py_logging.WARNING
  )


def main(_) -> None:
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_ours)
  if not _WORKDIR.value:
    raise errors.InputError("--workdir: not given; expected a folder")
  if _CONFIG.value is None:
    raise errors.InputError(
      "--config: not given; expected a file such as configs/swe.py"
    )
  stages = list(_STAGES.value or DEFAULT_STAGES)
  known = [*STAGES, *_SERVICES]
  unknown = [s for s in stages if s not in known]
  if unknown:
    raise errors.InputError(
      f"--stages: {unknown[0]!r}; expected some of {', '.join(known)}"
    )
  config_check.expand(_CONFIG.value)
  if _RECORD.value is not None:
    _CONFIG.value.serve.record = _RECORD.value
  config_check.check(_CONFIG.value)
  if any(s in _SERVICES or "model" in STAGES[s][1] for s in stages):
    policy_lib.check(_CONFIG.value)
  _keep_programs()
  run(_CONFIG.value, pathlib.Path(_WORKDIR.value).expanduser(), stages)


def _keep_programs():
  """Compiled programs stay on disk between runs; JAX's own variables win."""
  cache = os.environ.get("PIVOTRL_CACHE") or "~/.cache/pivotrl_jax/xla"
  for name, value in (
    ("jax_compilation_cache_dir", os.path.expanduser(cache)),
    ("jax_persistent_cache_min_compile_time_secs", 0.5),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def _parse(argv):
  """absl's parser, with its complaints as InputError."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
          OSError) as error:  # fmt: skip
    first = str(error).strip("'\"").splitlines()[0]
    raise errors.InputError(f"command line: {first}") from error


def entry() -> None:
  """`main` with one line and a status for every bad end."""
  try:
    app.run(main, flags_parser=_parse)
  except errors.InputError as error:
    _fail(str(error), 2)
  except errors.EngineError as error:
    _fail(f"{error}; the same command goes on", 1)
  except OSError as error:
    place = error.filename or "a file"
    _fail(f"{place}: {error.strerror or error}; what is complete stays", 2)
  except KeyboardInterrupt:
    _fail("interrupted; the same command goes on", 130)


def _fail(line, status):
  print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
  # Background writers of libraries must not turn one line into many.
  logging.flush()
  os._exit(status)


if __name__ == "__main__":
  entry()
