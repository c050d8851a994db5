"""Jobs as Slurm arrays: one script, written to the root and submitted.

An array task is an attempt at a job, so that folders and index are those of
the local launcher. What jobs need runs in an array of its own before them.
"""

from collections.abc import Sequence
import pathlib
import shlex
import shutil
import subprocess
import sys

from absl import logging

from launchers.executors import local
from launchers.runs import root as root_lib
from pivotrl_jax import errors
from pivotrl_jax.data import records

SCRIPT = "slurm.sh"
SUBMITTED = "slurm.jsonl"

# SIGUSR1 comes `grace` seconds before the time limit: the run is asked to
# stop, and the task queued again. SIGTERM is a preemption (Slurm queues the
# task again by --requeue) or an scancel: passed on, no more.
_SCRIPT = """\
#!/bin/bash
# Array task N is job N of `jobs`. Written by launchers/launch.py.
#SBATCH --job-name={name}
#SBATCH --output={root}/slurm-%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{grace}
{options}
jobs=(
{jobs}
)
cd {checkout} || exit 2
run= again= asked=
stop() {{ asked=1; [ -z "$run" ] || kill -TERM "$run"; }}
trap 'again=1; stop' USR1
trap stop TERM INT
{start}
run=$!
[ -z "$asked" ] || kill -TERM "$run"
wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do  # A signal ends `wait`, not the run.
  wait "$run"
  status=$?
done
task=${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}
restarts=${{SLURM_RESTART_COUNT:-0}}
case $status in
  0 | 2) ;;  # Done, or bad input: the same again would end the same way.
  129 | 130 | 143) [ -n "$again" ] && scontrol requeue "$task" ;;
  *) [ "$restarts" -lt {retries} ] && scontrol requeue "$task" ;;
esac
exit "$status"
"""
_START = """\
bash -c "${jobs[$SLURM_ARRAY_TASK_ID]}" &"""
# A task a host: its index is Slurm's, the first host coordinates.
_START_HOSTS = """\
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export COORDINATOR=$host:$((20000 + SLURM_JOB_ID % 20000))
srun --kill-on-bad-exit=1 bash -c "${jobs[$SLURM_ARRAY_TASK_ID]}" &"""


def script(
  root: pathlib.Path,
  jobs: Sequence[root_lib.Job],
  *,
  checkout: pathlib.Path,
  options: Sequence[str],
  grace: int,
  tries: int,
  hosts: int,
) -> str:
  """The script of all arrays of `jobs`; array task N runs the N-th.

  Args:
    root: the sweep's folder.
    jobs: each after what it needs.
    checkout: where runs are started.
    options: for sbatch, such as `--partition=gpu`.
    grace: seconds before the time limit at which a run is asked to stop.
    tries: how often a job that dies is started.
    hosts: of a run; each has one process.
  """
  lines = [f"#SBATCH {option}" for option in options]
  if hosts > 1:
    lines.append(f"#SBATCH --nodes={hosts} --ntasks-per-node=1")
  return _SCRIPT.format(
    name=root.name,
    root=root,
    grace=grace,
    options="\n".join(lines),
    jobs="\n".join(
      "  " + shlex.quote(f"exec {_command(root, job, hosts)}") for job in jobs
    ),
    checkout=shlex.quote(str(checkout)),
    start=_START_HOSTS if hosts > 1 else _START,
    retries=tries - 1,
  )


def arrays(jobs: Sequence[root_lib.Job]) -> list[list[int]]:
  """Indices of `jobs` in the order of their arrays: what is needed first."""
  depth: dict[str, int] = {}
  for job in jobs:
    depth[job.name] = 1 + max((depth.get(n, 0) for n in job.needs), default=0)
  levels = sorted(set(depth.values()))
  return [
    [i for i, job in enumerate(jobs) if depth[job.name] == level]
    for level in levels
  ]


def submit(
  root: pathlib.Path, jobs: Sequence[root_lib.Job], text: str, at_once: int
) -> None:
  """Writes the script; submits it, or prints how.

  Args:
    root: the sweep's folder.
    jobs: those that are not done.
    text: of `script`.
    at_once: most tasks of an array at a time; 0 = all.

  Raises:
    InputError: an earlier submission is still queued, or sbatch refuses.
  """
  if not jobs:
    logging.info("slurm: nothing left to run")
    return
  sbatch = shutil.which("sbatch")
  if sbatch:
    _check_queue(root)
  path = root / SCRIPT
  records.write_text(path, [text])
  before, submitted = "", []
  for number, indices in enumerate(arrays(jobs)):
    command = [
        "sbatch", "--parsable",
        f"--array={_ranges(indices)}" + (f"%{at_once}" if at_once else ""),
        *([f"--dependency=afterany:{before}"] if before else []), str(path),
    ]  # fmt: skip
    if not sbatch:
      before = f"$job{number}"
      line = shlex.join(command).replace("'", '"')
      print(f"job{number}=$({line})")
      continue
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise errors.InputError(f"sbatch: {done.stderr.strip()}")
    before = done.stdout.strip().partition(";")[0]
    names = [jobs[index].name for index in indices]
    submitted.append({"job": before, "names": names})
    logging.info("slurm: array %s of %d jobs", before, len(indices))
    records.write_jsonl(root / SUBMITTED, submitted)
  if not sbatch:
    print(f"# No sbatch here: the script is {path}", file=sys.stderr)


def _check_queue(root):
  """One array at a time: a second would wait for the first one's folders."""
  path = root / SUBMITTED
  if not path.exists() or not shutil.which("squeue"):
    return
  jobs = ",".join(row["job"] for _, row in records.read_jsonl(path))
  done = subprocess.run(
      ["squeue", "--noheader", f"--jobs={jobs}"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  if done.returncode == 0 and done.stdout.strip():
    raise errors.InputError(
      f"--root={root}: Slurm still has its jobs {jobs}; expected them to have"
      " ended, or scancel"
    )


def _command(root, job, hosts):
  """The attempt as a shell command; each host adds which process it is."""
  words = local.command(root, job)
  if hosts == 1:
    return shlex.join(words)
  cut = words.index("--")
  return (
    f"{shlex.join(words[:cut])} --process=$SLURM_PROCID"
    f" {shlex.join(words[cut:])} --coordinator=$COORDINATOR"
    f" --processes=$SLURM_NTASKS --process=$SLURM_PROCID"
  )


def _ranges(indices):
  """`0-3,7` of [0, 1, 2, 3, 7]."""
  found: list[list[int]] = []
  for index in indices:
    if found and index == found[-1][1] + 1:
      found[-1][1] = index
    else:
      found.append([index, index])
  return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in found)
