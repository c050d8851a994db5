"""Stands in for main where launchers are tested: the same folder, no jax.

Keeps to what main promises: one run a workdir, stages with records, training
that goes on from its last step, SIGTERM ends in 143. Takes main's flags, and
`--config.NAME` of its own: steps, fails (status), until (a file that the last
step waits for), leaves (a stage that it does not complete).
"""

import json
import pathlib
import signal
import sys
import time

from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records

STAGES = ("import", "train", "evaluate")


def main(argv):
  given = dict(arg.removeprefix("--").split("=", 1) for arg in argv[1:])
  path = pathlib.Path(given["workdir"])
  if int(given.get("process", 0)):
    print(json.dumps(given))
    return
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  stages = given.get("stages", ",".join(STAGES)).split(",")
  with workdir_lib.opened(path):
    if int(given.get("config.fails", 0)):
      print("error: --config.fails: asked to; expected not", file=sys.stderr)
      sys.exit(int(given["config.fails"]))
    for stage in stages:
      if stage in workdir_lib.finished(path):
        continue
      outputs = RUN[stage](path, given)
      if given.get("config.leaves") == stage:
        return
      with open(path / "timings.jsonl", "a") as out:
        out.write(json.dumps({"stage": stage}) + "\n")
      record = {
        "outputs": {n: workdir_lib.fingerprint(path / n) for n in outputs}
      }
      records.write_text(
        path / ".stages" / f"{stage}.json", [json.dumps(record)]
      )


def _import(path, given):
  time.sleep(0.1)
  (path / "trajectories.jsonl").write_text(given["config.seed"])
  return ["trajectories.jsonl"]


def _train(path, given):
  file = path / "metrics.jsonl"
  whole = file.read_bytes() if file.exists() else b""
  whole = whole[: whole.rfind(b"\n") + 1]
  file.write_bytes(whole)
  steps = int(given.get("config.steps", 8))
  for step in range(whole.count(b"\n"), steps):
    time.sleep(0.05)
    while (
      step + 1 == steps
      and not pathlib.Path(given.get("config.until", "/")).exists()
    ):
      time.sleep(0.05)
    with open(file, "ab") as out:
      row = {"step": step + 1, "rollout/reward_mean": step / 10}
      out.write(json.dumps(row).encode() + b"\n")
  return ["metrics.jsonl"]


def _evaluate(path, given):
  seed = int(given["config.seed"])
  rows = [
    {
      "policy": policy, "suite": "swe", "split": "eval", "task": f"t{task}",
      "seed": 0, "success": (task + seed) % 4 < wins, "turns": 1, "tokens": 1,
    }
    for policy, wins in (("base", 1), ("trained", 2))
    for task in range(8)
  ]  # fmt: skip
  (path / "evals.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
  return ["evals.jsonl"]


RUN = {"import": _import, "train": _train, "evaluate": _evaluate}

if __name__ == "__main__":
  main(sys.argv)
