"""Runs the stages of a run, in order.

  python -m pivotrl_jax.main --config=configs/swe.py --workdir=DIR

Bad input of any kind ends in one line on standard error and status 2.
"""

from pivotrl_jax import interrupt
from pivotrl_jax import large_pages

if __name__ == "__main__":  # Before the imports, which take seconds.
  large_pages.ask()
  interrupt.install()

from collections.abc import Sequence
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
from pivotrl_jax import hosts
from pivotrl_jax import progress
from pivotrl_jax import stages
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.dry_run import predict
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.train import parallel

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, such as configs/swe.py or configs/swe.py:tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where artifacts go.")
_STAGES = flags.DEFINE_list(
  "stages", None, "Stages to run, in order; all by default."
)
_RECORD = flags.DEFINE_string(
  "record", None, "File to which `serve` appends every exchange."
)
_REDO = flags.DEFINE_list(
  "redo", [], "Stages to do again, with what was made from their outputs."
)
# Of a run over several hosts, as jax.distributed.initialize takes them.
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Several hosts: HOST:PORT of the first process."
)
_PROCESSES = flags.DEFINE_integer(
  "processes", 1, "Several hosts: how many processes, one each."
)
_PROCESS = flags.DEFINE_integer(
  "process", 0, "Several hosts: which one this is, from 0."
)
_TIMEOUT = flags.DEFINE_float(
  "initialization_timeout", 300, "Several hosts: seconds for all to come."
)


def run(
  config, path: pathlib.Path, names: Sequence[str], redo: Sequence[str] = ()
) -> None:
  """Runs the stages `names` in `path`; those already done are skipped.

  Args:
    config: resolved and checked.
    path: the workdir.
    names: keys of `stages.STAGES`, in order.
    redo: stages whose outputs, and what was made of them, give way first.

  Raises:
    InputError: bad input, or a costly stage that was made otherwise.
  """
  names = [n for n in names if n != "warm_start" or config.warm_start.steps]
  if not hosts.is_first():
    for name in names:
      _follow_stage(config, path, name)
    return
  with workdir_lib.opened(path):
    aside = progress.next_aside(path)
    progress.check(config, path, names, redo)
    if redo:
      progress.redo(config, path, redo, aside)
    described = workdir_lib.describe(config.to_dict())
    progress.write_config(path, described, aside)
    workdir_lib.remember(path)
    for name in names:
      _run_stage(config, path, name, aside)
    progress.ended(path)
    workdir_lib.remember(path)


def _run_stage(config, path, name, aside):
  """A stage in the first process, which reads and writes all records."""
  if progress.is_done(config, path, name):
    logging.info("%s: done before", name)
    hosts.first(lambda: False)
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
  progress.begin(config, path, name, aside)
  hosts.first(lambda: True)
  started = time.monotonic()
  complete = _function(name)(config, path)
  if complete is not False:  # Else the next start goes on with it.
    progress.finish(config, path, name)
  seconds = time.monotonic() - started
  with open(path / "timings.jsonl", "a", encoding="utf-8") as out:
    out.write(json.dumps({"stage": name, "seconds": round(seconds, 2)}) + "\n")
  logging.info("%s: %.1f s", name, seconds)
  hosts.barrier()


def _follow_stage(config, path, name):
  """A stage in another process: its part, or to wait for the first's."""
  if hosts.first(lambda: None):
    if stages.STAGES[name].shared:
      _function(name)(config, path)
    hosts.barrier()


def _function(name):
  module, function = stages.STAGES[name].function.split(":")
  return getattr(importlib.import_module(module), function)


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
  for flag, given in (("stages", _STAGES.value or ()), ("redo", _REDO.value)):
    unknown = [s for s in given if s not in stages.STAGES]
    if unknown:
      raise errors.InputError(
        f"--{flag}: {unknown[0]!r}; expected some of {', '.join(stages.STAGES)}"
      )
  _join()
  flag = flags.FLAGS["config"]
  # The file's own values, before other flags changed them.
  default = flag.parser.parse(config_flags.get_config_filename(flag))
  if _RECORD.value is not None:
    _CONFIG.value.serve.record = _RECORD.value
  config_check.expand(_CONFIG.value)
  dry = _STAGES.value == ["dry_run"]
  config_check.check(_CONFIG.value, default, here=not dry)
  names = _STAGES.value or stages.default(_CONFIG.value)
  if _CONFIG.value.profile.part:
    whole = [n for n in names if "profile" in stages.needs(_CONFIG.value, n)]
    if whole:
      raise errors.InputError(
        f"--stages={whole[0]}: after --config.profile.part="
        f"{_CONFIG.value.profile.part}; expected the whole profile, which"
        " --config.profile.parts merges"
      )
  if "evaluate" in names and "baseline" not in names:
    # What it compares with is part of it.
    place = names.index("evaluate")
    names = [*names[:place], "baseline", *names[place:]]
  if any(stages.reads_model(_CONFIG.value, name) for name in names):
    parallel.check(_CONFIG.value.train, policy_lib.check(_CONFIG.value))
  if "dry_run" in names:
    predict.check(_CONFIG.value)
  keep_programs()
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  run(_CONFIG.value, workdir, names, _REDO.value)
  hosts.stop()


def _join():
  """Meets the other processes of a run over several hosts.

  Raises:
    InputError: a flag says no such process, or they cannot meet.
  """
  count, index, address = (
    _PROCESSES.value, _PROCESS.value, _COORDINATOR.value,
  )  # fmt: skip
  if count < 1 or not 0 <= index < count:
    raise errors.InputError(
      f"--processes={count} --process={index}: expected a process from 0 on of"
      " at least one"
    )
  if not address:
    if count > 1:
      raise errors.InputError(
        f"--processes={count}: no --coordinator; expected HOST:PORT of process"
        " 0"
      )
    return
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
    raise errors.InputError(f"--coordinator={address}: expected HOST:PORT")
  if index:
    logging.set_verbosity(logging.WARNING)  # The first one says it all.
  interrupt.before_end(hosts.tell)
  hosts.start(address, count, index, timeout=_TIMEOUT.value)


def keep_programs() -> None:
  """Compiled programs stay on disk between runs; JAX's own variables win."""
  cache = os.environ.get("PIVOTRL_CACHE") or "~/.cache/pivotrl_jax/xla"
  for name, value in (
    ("jax_compilation_cache_dir", os.path.expanduser(cache)),
    ("jax_persistent_cache_min_compile_time_secs", 0.05),
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
    _fail(f"{error}; what is complete stays, the same command goes on", 1)
  except OSError as error:
    place = error.filename or "a file"
    _fail(f"{place}: {error.strerror or error}; what is complete stays", 2)
  except interrupt.Stopped as stopped:
    _fail(f"{stopped}: what is complete stays, the same command goes on",
          stopped.status)  # fmt: skip
  except Exception:
    hosts.hear()  # A collective fails where another process is gone.
    raise


def _fail(line, status):
  line = " ".join(line.split())
  hosts.tell(status, line)
  print(f"error: {line}", file=sys.stderr, flush=True)
  # Background writers of libraries must not turn one line into many.
  logging.flush()
  os._exit(status)


if __name__ == "__main__":
  entry()
