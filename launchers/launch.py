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
if str(CHECKOUT) not in sys.path:
  sys.path.insert(0, str(CHECKOUT))

from launchers.executors import local
from launchers.executors import slurm
from launchers.executors import xmanager
from launchers.runs import attempt
from launchers.runs import board
from launchers.runs import locks
from launchers.runs import root as root_lib
from launchers.runs import table
from pivotrl_jax import errors

_SWEEP = flags.DEFINE_string("sweep", None, "File with get_sweep().")
_SCALE = flags.DEFINE_string(
  "scale", None, "What get_sweep takes, where it takes one: mini or paper."
)
_ROOT = flags.DEFINE_string("root", None, "The sweep's folder.")
_EXECUTOR = flags.DEFINE_enum(
  "executor",
  "local",
  ["local", "slurm", "xm_local", "vertex", "kubernetes"],
  "What runs it.",
)
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
_HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts of a run; on clusters.", 1)
_SBATCH = flags.DEFINE_multi_string(
  "sbatch", [], "Slurm: an option of sbatch, as --time=4:00:00; repeatable."
)
_GRACE = flags.DEFINE_integer(
  "grace", 120, "Slurm: seconds before the time limit to stop a run in.", 1
)
_IMAGE = flags.DEFINE_string(
  "image", "", "Vertex, Kubernetes: a container that has this checkout."
)
_REQUIREMENTS = flags.DEFINE_list(
  "requirements", [], "Vertex, Kubernetes: of a run, as h100=8,ram=64GiB."
)
_MAIN = flags.DEFINE_string("main", "pivotrl_jax.main", "Module of a run.")


def main(argv: Sequence[str]) -> None:
  """One line and status 2 for bad input."""
  try:
    _main(argv)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


def _main(argv):
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
  from launchers import sweep
  from launchers.runs import plan  # Late: status needs no jax.

  if _SWEEP.value is None:
    raise errors.InputError(
      "--sweep: not given; expected a file such as launchers/sweeps/smoke.py"
    )
  file = pathlib.Path(_SWEEP.value).absolute()
  os.chdir(CHECKOUT)  # As the runs: config files and data are found from it.
  runs = sweep.load(str(file), _SCALE.value)
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
    EXECUTORS[_EXECUTOR.value](root, todo, known)


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


def _run_local(root, todo, known):
  parts = local.slots(
    _at_once(),
    threads=_THREADS.value,
    devices=_DEVICES.value,
    variable=_VARIABLE.value,
  )
  launcher = local.Launcher(root, todo, parts=parts, tries=_TRIES.value)
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: launcher.ask(number))
  with known.live(sys.stderr) as redraw:

    def show():
      known.update(launcher.running, launcher.causes)
      redraw()

    launcher.run(show)
  table.show(root_lib.shown(known.rows))
  if launcher.asked is not None:
    sys.exit(128 + launcher.asked)
  _exit(known)


def _run_slurm(root, todo, known):
  del known  # Nothing has ended when this returns.
  text = slurm.script(
    root,
    todo,
    checkout=CHECKOUT,
    options=_SBATCH.value,
    grace=_GRACE.value,
    tries=_TRIES.value,
    hosts=_HOSTS.value,
  )
  slurm.submit(root, todo, text, _AT_ONCE.value)


def _run_xm(root, todo, known):
  xmanager.run(
    root,
    todo,
    executor=_EXECUTOR.value,
    image=_IMAGE.value,
    requirements=_REQUIREMENTS.value,
    hosts=_HOSTS.value,
    at_once=_at_once() if _EXECUTOR.value == "xm_local" else len(todo) or 1,
    tries=_TRIES.value,
  )
  known.update([job.name for job in todo], {})
  table.show(root_lib.shown(known.rows))
  _exit(known)


# Executor -> what gives it the jobs.
EXECUTORS = {
  "local": _run_local,
  "slurm": _run_slurm,
  "xm_local": _run_xm,
  "vertex": _run_xm,
  "kubernetes": _run_xm,
}


def _at_once():
  return (
    _AT_ONCE.value
    or len(_DEVICES.value)
    or max(1, len(os.sched_getaffinity(0)) // 2)
  )


def _exit(known):
  """Status 1 where a run of the sweep is not done."""
  runs = [row for row in known.rows if row.job.arm and not row.gone]
  sys.exit(int(any(row.status.state != "done" for row in runs)))


if __name__ == "__main__":
  app.run(main)
