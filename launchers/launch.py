"""Launches a sweep: a run a folder, resumable, on this machine or a cluster.

  python launchers/launch.py --sweep=launchers/sweeps/smoke.py --root=DIR
  python launchers/launch.py --sweep=... --root=DIR --dry       # what it would do
  python launchers/launch.py --sweep=... --root=DIR --executor=slurm
  python launchers/launch.py status --root=DIR                  # at any time

The same command again goes on: what is done is skipped, what died or was
interrupted is started again.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
import shlex
import signal
import sys
import time

from absl import app
from absl import flags
from absl import logging

# Runs from a checkout as it is.
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from launchers import attempt
from launchers import board
from launchers import local
from launchers import locks
from launchers import root as root_lib
from launchers import slurm
from launchers import table
from pivotrl_jax import errors

EXECUTORS = ("local", "slurm", "xm_local", "vertex", "kubernetes")

_SWEEP = flags.DEFINE_string("sweep", None, "File with get_sweep().")
_ROOT = flags.DEFINE_string("root", None, "The sweep's folder.")
_EXECUTOR = flags.DEFINE_enum("executor", "local", EXECUTORS, "What runs it.")
_DRY = flags.DEFINE_bool("dry", False, "Print what would run, and stop.")
_TRIES = flags.DEFINE_integer(
  "tries", 3, "How often a run that dies is started by one launch.", 1
)
_AT_ONCE = flags.DEFINE_integer(
  "at_once", 0, "Runs at once; 0 = one a device, or one in two cores.", 0
)
_THREADS = flags.DEFINE_integer(
  "threads", 0, "Cores of a run on this machine; 0 = equal shares.", 0
)
_DEVICES = flags.DEFINE_list(
  "devices", [], "Devices of this machine, dealt out to the runs at once."
)
_VARIABLE = flags.DEFINE_string(
  "device_variable", "CUDA_VISIBLE_DEVICES", "Says which a process sees."
)
_MAIN = flags.DEFINE_string("main", "pivotrl_jax.main", "Module of a run.")


def main(argv: Sequence[str]) -> None:
  logging.set_verbosity(logging.INFO)
  if _ROOT.value is None:
    raise errors.InputError("--root: not given; expected a folder")
  root = pathlib.Path(_ROOT.value).expanduser().absolute()
  if list(argv[1:]) == ["status"]:
    status(root)
  elif argv[1:]:
    raise errors.InputError(f"{argv[1]!r}; expected status, or flags alone")
  else:
    launch(root)


def status(root: pathlib.Path) -> None:
  """Prints the table of a sweep, from its folder alone.

  Raises:
    InputError: it is no folder of a sweep.
  """
  rows = root_lib.read(root)
  if not rows:
    raise errors.InputError(
      f"--root={root}: no {root_lib.INDEX}; expected the folder of a sweep"
    )
  rows = [
    dataclasses.replace(row, status=root_lib.stands(root, row)) for row in rows
  ]
  table.show(root_lib.shown(rows))


def launch(root: pathlib.Path) -> None:
  """Plans the sweep, tells what is new, and gives it to the executor.

  Raises:
    InputError: a sweep that cannot be, before anything starts.
    SystemExit: with the status of a launch that did not end well.
  """
  from launchers import plan  # Late: status needs no jax.
  from launchers import sweep

  if _SWEEP.value is None:
    raise errors.InputError(
      "--sweep: not given; expected a file such as launchers/sweeps/smoke.py"
    )
  file = pathlib.Path(_SWEEP.value).absolute()
  os.chdir(CHECKOUT)  # As the runs: config files and data are found from it.
  runs = sweep.load(str(file))
  configs = [sweep.resolve(run) for run in runs]
  jobs = plan.jobs(runs, configs, root, _MAIN.value)
  if _DRY.value:
    _print_plan(root, jobs)
    return
  by_name = {run.name: config for run, config in zip(runs, configs)}
  carry_out(
    root, jobs,
    lambda job: plan.is_done(by_name[job.name], root / job.name, job.stages),
  )  # fmt: skip


def carry_out(
  root: pathlib.Path,
  jobs: Sequence[root_lib.Job],
  is_done: Callable[[root_lib.Job], bool],
) -> None:
  """Gives what is left of `jobs` to the executor.

  Args:
    root: the sweep's folder.
    jobs: each after what it needs.
    is_done: whether a run's own records say so.
  """
  with locks.held(root / root_lib.LOCK, "launcher"):
    for line in root_lib.changes(root_lib.read(root), jobs):
      logging.info("sweep: %s", line)
    known = board.Board(root, jobs)
    todo = _todo(root, jobs, is_done, known)
    if _EXECUTOR.value == "local":
      sys.exit(_run_here(root, todo, known))
    if _EXECUTOR.value == "slurm":
      slurm.submit(root, todo)
    else:
      from launchers import xm  # Late: xmanager is not required.

      sys.exit(xm.run(root, todo, _EXECUTOR.value))


def _print_plan(root, jobs):
  for line in root_lib.changes(root_lib.read(root), jobs):
    print(line)
  for job in jobs:
    print(f"{job.name} ({f'arm {job.arm}' if job.arm else 'shared'})")
    for name in job.needs:
      print(f"    takes over {name}")
    print(f"    {shlex.join(job.command)}")
  runs = sum(bool(job.arm) for job in jobs)
  print(f"{runs} runs, {len(jobs) - runs} shared, in {root}; nothing started")


def _todo(root, jobs, is_done, known):
  """Runs that their records do not say are done, and what these need."""
  left = []
  for job in (job for job in jobs if job.arm):
    stands = known[job.name]
    if stands.state == "running" or not is_done(job):
      left.append(job)
    elif stands.state != "done":
      # Done by a command that its attempts do not tell of.
      attempt.record(root / job.name, started=time.time(), command=job.command)
      attempt.record(root / job.name, ended=time.time(), status=0, cause="")
      known.update([job.name], {})
  wanted = {job.name for job in left}.union(*(job.needs for job in left))
  return [
    job
    for job in jobs
    if job.name in wanted and (job.arm or known[job.name].state != "done")
  ]


def _run_here(root, todo, known):
  """Runs `todo` on this machine; returns the status to exit with."""
  launcher = local.Launcher(root, todo, parts=_parts(), tries=_TRIES.value)
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: launcher.ask(number))
  with known.live(sys.stderr) as redraw:

    def show():
      known.update(launcher.running, launcher.causes)
      redraw()

    launcher.run(show)
  table.show(root_lib.shown(known.rows))
  if launcher.asked is not None:
    return 128 + launcher.asked
  runs = [row for row in known.rows if row.job.arm and not row.gone]
  return int(any(row.status.state != "done" for row in runs))


def _parts():
  cores = len(os.sched_getaffinity(0))
  return local.slots(
    _AT_ONCE.value or len(_DEVICES.value) or max(1, cores // 2),
    threads=_THREADS.value,
    devices=_DEVICES.value,
    variable=_VARIABLE.value,
  )


def entry() -> None:
  """`main`, with one line and status 2 for bad input."""
  try:
    app.run(main)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  entry()
