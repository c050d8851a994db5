"""Runs jobs on this machine: so many at once, each on its own cores or GPUs.

What a job's folder says is all that is remembered: a launcher that was killed
finds what still runs by its lock, what is done and what died by its records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from absl import logging

from launchers.runs import attempt
from launchers.runs import locks
from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors

_ATTEMPT = pathlib.Path(attempt.__file__)
_TICK = 0.2  # Seconds between looks.


@dataclasses.dataclass(frozen=True)
class Slot:
  """What one job at a time may use.

  Attributes:
    cpus: numbers of cores; empty for all.
    environment: variables, such as the GPUs it sees.
  """

  cpus: tuple[int, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def slots(
  at_once: int,
  *,
  threads: int = 0,
  devices: Sequence[str] = (),
  variable: str = "",
) -> list[Slot]:
  """This machine in `at_once` parts.

  Args:
    at_once: how many jobs at once.
    threads: cores of each; 0 = equal shares. More than there are overlap.
    devices: names of its devices, dealt out equally.
    variable: of the environment that says which devices a process sees.

  Raises:
    InputError: there are fewer devices than jobs at once.
  """
  if devices and len(devices) < at_once:
    raise errors.InputError(
      f"--at_once={at_once}: {len(devices)} devices; expected one each or more"
    )
  cores = sorted(os.sched_getaffinity(0))
  threads = min(threads or max(1, len(cores) // at_once), len(cores))
  share = len(devices) // at_once
  found = []
  for index in range(at_once):
    own = [
      cores[(index * threads + offset) % len(cores)]
      for offset in range(threads)
    ]
    seen = ",".join(devices[index * share : (index + 1) * share])
    found.append(Slot(tuple(own), {variable: seen} if devices else {}))
  return found


def command(
  root: pathlib.Path, job: root_lib.Job, *, cpus: Sequence[int] = ()
) -> list[str]:
  """The attempt at a job, as any executor starts it."""
  return [
    sys.executable,
    str(_ATTEMPT),
    f"--workdir={root / job.name}",
    *(f"--shared={root / name}" for name in job.needs),
    *([f"--cpus={','.join(map(str, cpus))}"] if cpus else []),
    "--",
    *job.command,
  ]


class Launcher:
  """The jobs of a sweep, as they are started, end and are started again."""

  def __init__(
    self,
    root: pathlib.Path,
    jobs: Sequence[root_lib.Job],
    *,
    parts: Sequence[Slot],
    tries: int,
  ):
    """Takes up what an earlier launcher left running.

    Args:
      root: the sweep's folder.
      jobs: those that are not done, each after what it needs.
      parts: a job runs on one of them.
      tries: how often a job that dies is started, at most.
    """
    self._root, self._tries = root, tries
    self._jobs = {job.name: job for job in jobs}
    self._waiting = list(jobs)
    self._running: dict[str, tuple[subprocess.Popen | None, Slot | None]]
    self._running = {}
    self._free = list(parts)
    self._starts: dict[str, int] = {}
    self._told: set[str] = set()
    # What the folder could not be told, as where the disk is full.
    self.causes: dict[str, str] = {}
    self.asked: int | None = None
    for job in jobs:
      if self._is_held(job):
        logging.info("%s: still running", job.name)
        self._waiting.remove(job)
        part = self._free.pop() if self._free else None
        self._running[job.name] = None, part

  def run(self, show: Callable[[], None]) -> None:
    """Returns when every job is done, has failed, or was asked to stop.

    Args:
      show: called after each look.
    """
    while self._running or (self._waiting and self.asked is None):
      self._reap()
      for job in self._startable():
        self._start(job)
      self._pass_on()
      show()
      time.sleep(_TICK)
    show()

  def ask(self, number: int) -> None:
    """Passes a signal on to all that runs; nothing more is started."""
    self.asked = number
    self._told = set()

  @property
  def running(self) -> set[str]:
    """Names of the jobs that run."""
    return set(self._running)

  def _pass_on(self):
    if self.asked is None:
      return
    for name, (process, _) in self._running.items():
      if name in self._told:
        continue
      self._told.add(name)
      if process is not None:
        process.send_signal(self.asked)
      else:
        _signal_stranger(self._root / name, self.asked)

  def _is_held(self, job):
    return locks.is_held(self._root / job.name / attempt.LOCK)

  def _startable(self) -> Iterator[root_lib.Job]:
    """Jobs whose turn it is: a part is free, what they need has settled."""
    for job in list(self._waiting):
      if self.asked is not None or not self._free:
        return
      unsettled = {j.name for j in self._waiting} | self._running.keys()
      if not unsettled & set(job.needs):
        yield job

  def _start(self, job):
    part = self._free.pop(0)
    self._waiting.remove(job)
    self._starts[job.name] = self._starts.get(job.name, 0) + 1
    self.causes.pop(job.name, None)
    # A session of its own: a terminal's signals reach it through us.
    process = subprocess.Popen(
        command(self._root, job, cpus=part.cpus),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **part.environment},
    )  # fmt: skip
    self._running[job.name] = process, part

  def _reap(self):
    for name, (process, part) in list(self._running.items()):
      job = self._jobs[name]
      if (process is not None and process.poll() is None) or self._is_held(job):
        continue
      del self._running[name]
      if part is not None:
        self._free.append(part)
      stands = status.read(self._root / name, job.command, job.stages)
      said = process.stderr.read().strip() if process is not None else ""
      if said:  # Nothing where the folder could be told how it ended.
        self.causes[name] = said.splitlines()[-1].removeprefix("error: ")
      if self._is_to_start_again(name, process, stands):
        logging.info("%s: %s; started again", name, stands.cause)
        self._waiting.insert(0, job)

  def _is_to_start_again(self, name, process, stands):
    if self.asked is not None or self._starts.get(name, 0) >= self._tries:
      return False
    # An attempt that could not even begin would not the next time either.
    if process is not None and process.returncode == status.BAD_INPUT:
      return False
    return status.is_to_start_again(stands)


def _signal_stranger(workdir, number):
  """Signals an attempt that an earlier launcher started."""
  pid = status.pid(workdir)
  try:
    if pid is not None:
      os.kill(pid, number)
  except ProcessLookupError:
    logging.warning("%s: runs without its attempt; not signalled", workdir)
