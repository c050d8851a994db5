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
from pivotrl_jax import stages
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, such as configs/swe.py or configs/swe.py:tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where artifacts go.")
_STAGES = flags.DEFINE_list(
  "stages", None, "Stages to run, in order; all by default."
)


def run(config, path: pathlib.Path, names: list[str]) -> None:
  """Runs the stages `names` in `path`; those already done are skipped."""
  with workdir_lib.opened(path):
    described = workdir_lib.describe(config.to_dict())
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    records.write_text(path / "config.json", [text])
    for name in names:
      if name == "warm_start" and not config.warm_start.steps:
        continue
      _run_stage(config, path, name)


def _run_stage(config, path, name):
  stage = stages.stage(config, name)
  key = stages.key(config, path, name) | stages.grown(config, name)
  if workdir_lib.is_done(path, name, key):
    logging.info("%s: done before", name)
    return
  missing = [
    n
    for n in stages.inputs(config, name)
    if not (path / n).exists() and n not in stages.OPTIONAL
  ]
  if missing:
    raise errors.InputError(
      f"--stages={name}: {path / missing[0]} is missing; expected the"
      " stages before it to have run"
    )
  workdir_lib.begin(path, name, key, [*stage.resumes, *stage.outputs])
  started = time.monotonic()
  module, function = stage.function.split(":")
  getattr(importlib.import_module(module), function)(config, path)
  workdir_lib.mark_done(path, name, key, list(stage.outputs))
  seconds = time.monotonic() - started
  with open(path / "timings.jsonl", "a", encoding="utf-8") as out:
    out.write(json.dumps({"stage": name, "seconds": round(seconds, 2)}) + "\n")
  logging.info("%s: %.1f s", name, seconds)


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
  names = list(_STAGES.value or stages.DEFAULT)
  unknown = [s for s in names if s not in stages.STAGES]
  if unknown:
    raise errors.InputError(
      f"--stages: {unknown[0]!r}; expected some of {', '.join(stages.STAGES)}"
    )
  config_check.check(_CONFIG.value)
  _keep_programs()
  run(_CONFIG.value, pathlib.Path(_WORKDIR.value), names)


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
