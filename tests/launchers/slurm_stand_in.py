"""Stands in for sbatch, scontrol and srun: runs an array here, at once.

As Slurm does: the script of a task is one bash process with Slurm's
variables; the signal of `#SBATCH --signal=B:NAME@SECONDS` goes to that process
alone; a task that was queued again runs again. The signal is sent when the
file $STAND_IN_SIGNAL_WHEN is there, once.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

QUEUED_AGAIN = "queued_again"


def sbatch(args):
  given = dict(arg.split("=", 1) for arg in args[1:-1])
  state = pathlib.Path(os.environ["STAND_IN_STATE"])
  number = 100 + len(list(state.glob("job*")))
  before = given.get("--dependency", "").removeprefix("afterany:")
  assert not before or (state / f"job{before}").exists()
  (state / f"job{number}").touch()
  for task in _tasks(given["--array"]):
    restarts = 0
    while _run(state, pathlib.Path(args[-1]), number, task, restarts):
      restarts += 1
  print(number)


def _tasks(text):
  for part in text.partition("%")[0].split(","):
    first, _, last = part.partition("-")
    yield from range(int(first), int(last or first) + 1)


def _run(state, script, number, task, restarts):
  """Runs one task; whether it was queued again."""
  bash = subprocess.Popen(
      ["bash", str(script)], stdout=subprocess.DEVNULL,
      env={
          **os.environ,
          "SLURM_JOB_ID": str(number), "SLURM_ARRAY_JOB_ID": str(number),
          "SLURM_ARRAY_TASK_ID": str(task),
          "SLURM_JOB_NODELIST": "node[1-2]",
          **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
      },
  )  # fmt: skip
  when = pathlib.Path(os.environ.get("STAND_IN_SIGNAL_WHEN", "/never"))
  name = re.search(r"--signal=B:(\w+)@\d+", script.read_text())[1]
  while bash.poll() is None:
    if when.exists():
      when.unlink()
      bash.send_signal(signal.Signals[f"SIG{name}"])
    time.sleep(0.02)
  again = state / QUEUED_AGAIN
  if not again.exists():
    return False
  assert again.read_text() == f"{number}_{task}"
  again.unlink()
  return True


def scontrol(args):
  if args[0] == "show":
    print("node1\nnode2")
  else:
    assert args[0] == "requeue"
    state = pathlib.Path(os.environ["STAND_IN_STATE"])
    (state / QUEUED_AGAIN).write_text(args[1])


def srun(args):
  """Two tasks, one a host."""
  command = [arg for arg in args if not arg.startswith("--")]
  tasks = [
    subprocess.Popen(
      command,
      env={**os.environ, "SLURM_PROCID": str(i), "SLURM_NTASKS": "2"},
    )
    for i in range(2)
  ]
  sys.exit(max(task.wait() for task in tasks))


if __name__ == "__main__":
  globals()[sys.argv[1]](sys.argv[2:])
