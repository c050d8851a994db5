"""Jobs as XManager's work units: here, on Vertex AI, on Kubernetes.

On this machine a unit is an attempt, started without Docker or Bazel. On a
cluster it is the same attempt in `--image`, which has this checkout as its
working directory and python as its entrypoint, and sees the root under the
same path (a mounted bucket or disk). What is submitted is in ROOT/xm.jsonl.
"""

import asyncio
from collections.abc import Sequence
import pathlib
import re
import sys
from typing import Any

from launchers.executors import local
from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors
from pivotrl_jax.data import records

SPECS = "xm.jsonl"
_PORT = 29500  # Of the coordinator of a run over several hosts.
_LOOK = 1.0  # Seconds between looks at a folder.


def specification(
  root: pathlib.Path,
  job: root_lib.Job,
  *,
  executor: str,
  image: str = "",
  requirements: Sequence[str] = (),
  hosts: int = 1,
) -> dict[str, Any]:
  """What is handed to XManager for a job.

  Args:
    root: the sweep's folder.
    job: what to run.
    executor: xm_local, vertex or kubernetes.
    image: of the container; "" on this machine.
    requirements: `name=amount`, such as h100=8 or ram=64GiB.
    hosts: of the run; each has one process.

  Returns:
    job, executor, image, requirements, and the arguments of each host. The
    coordinator's address is COORDINATOR, which the launch fills in.
  """
  words = local.command(root, job)[1:]
  if image:  # The container's own python, and its own checkout.
    words = ["python" if w == sys.executable else w for w in words]
    words[0] = "launchers/runs/attempt.py"
  else:  # A failed process would end XManager's local experiment.
    words.insert(1, "--exit_zero")
  cut = words.index("--")
  return {
    "job": job.name,
    "executor": executor,
    "image": image,
    "requirements": dict(_requirement(text) for text in requirements),
    "args": [words]
    if hosts == 1
    else [
      [
        *words[:cut], f"--process={index}", *words[cut:],
        "--coordinator=COORDINATOR", f"--processes={hosts}",
        f"--process={index}",
      ]
      for index in range(hosts)
    ],
  }  # fmt: skip


def run(
  root: pathlib.Path,
  jobs: Sequence[root_lib.Job],
  *,
  executor: str,
  image: str,
  requirements: Sequence[str],
  hosts: int,
  at_once: int,
  tries: int,
) -> None:
  """Runs `jobs` as work units of one experiment; returns when all have ended.

  Args:
    root: the sweep's folder.
    jobs: those that are not done, each after what it needs.
    executor: xm_local, vertex or kubernetes.
    image: of the container; for clusters.
    requirements: of a job; see `specification`.
    hosts: of a run.
    at_once: most jobs at a time.
    tries: how often a job that dies is started.

  Raises:
    InputError: XManager is not installed, or cannot do what is asked.
  """
  _check(executor, image, hosts)
  if not jobs:
    return
  specs = [
    specification(
      root, job, executor=executor, image=image, requirements=requirements,
      hosts=hosts,
    )
    for job in jobs
  ]  # fmt: skip
  records.write_jsonl(root / SPECS, specs)
  asyncio.run(_experiment(root, jobs, specs, at_once=at_once, tries=tries))


def executors() -> dict[str, type]:
  """Our name of an executor -> XManager's."""
  from xmanager import xm_local

  return {
    "xm_local": xm_local.Local,
    "vertex": xm_local.Vertex,
    "kubernetes": xm_local.Kubernetes,
  }


def group(spec: dict[str, Any], executable: Any, address: str) -> Any:
  """The xm.JobGroup of a specification: a job a host.

  Args:
    spec: as `specification` returns it.
    executable: what XManager's packaging made of the image or interpreter.
    address: of the coordinator, `host:port`.
  """
  from xmanager import xm

  kind = executors()[spec["executor"]]
  return xm.JobGroup(
    **{
      f"host{index}": xm.Job(
        executable,
        kind(requirements=xm.JobRequirements(**spec["requirements"])),
        name=f"host{index}",
        args=[word.replace("COORDINATOR", address) for word in args],
      )
      for index, args in enumerate(spec["args"])
    }
  )


def _check(executor, image, hosts):
  try:
    import xmanager  # noqa: F401
  except ImportError as error:
    raise errors.InputError(
      f"--executor={executor}: no XManager here; expected pip install"
      " xmanager==0.8.5.post1, on Python 3.11"
    ) from error
  if executor != "xm_local" and not image:
    raise errors.InputError(
      f"--executor={executor}: no --image; expected a container that has this"
      " checkout"
    )
  if executor == "vertex" and hosts > 1:
    raise errors.InputError(
      f"--hosts={hosts}: on Vertex AI no host knows the first one's name;"
      " expected 1, or --executor=kubernetes"
    )


async def _experiment(root, jobs, specs, *, at_once, tries):
  from xmanager import xm_local

  limit = asyncio.Semaphore(at_once)
  settled = {job.name: asyncio.Event() for job in jobs}
  async with xm_local.create_experiment(root.name) as experiment:
    [executable] = experiment.package([_packageable(specs[0])])

    async def one(job, spec):
      async def generate(work_unit):
        address = _address(spec["executor"], work_unit)
        work_unit.add(group(spec, executable, address))

      for need in set(job.needs) & settled.keys():
        await settled[need].wait()
      async with limit:
        for _ in range(tries):
          before = _look(root, job).attempts
          unit = await experiment.add(generate)
          if not status.is_to_start_again(await _end(root, job, unit, before)):
            break
      settled[job.name].set()

    await asyncio.gather(*map(one, jobs, specs))


def _address(executor, work_unit):
  """Where the first host of a unit listens."""
  if executor != "kubernetes":
    return f"localhost:{_PORT}"
  name = work_unit.get_full_job_name("host0").replace("_", "-")
  return f"{name}.experiments:{_PORT}"


async def _end(root, job, unit, before):
  """How a job stands when its unit has ended, or its folder says so.

  XManager's Kubernetes units do not end where the job failed.
  """
  from xmanager import xm

  waiting = asyncio.ensure_future(unit.wait_until_complete())
  while not waiting.done():
    await asyncio.wait([waiting], timeout=_LOOK)
    stands = _look(root, job)
    if stands.attempts > before and stands.state != "running":
      break
  if not waiting.done():
    waiting.cancel()
  elif not isinstance(waiting.exception(), xm.ExperimentUnitFailedError | None):
    raise waiting.exception()
  return _look(root, job)


def _look(root, job):
  return status.read(root / job.name, job.command, job.stages)


def _packageable(spec):
  from xmanager import xm

  kind = executors()[spec["executor"]]
  executable = (
    xm.Container(image_path=spec["image"])
    if spec["image"]
    else xm.Binary(path=sys.executable)
  )
  return xm.Packageable(executable_spec=executable, executor_spec=kind.Spec())


def _requirement(text):
  """`ram=64GiB` -> ("ram", 64 * 2**30)."""
  found = re.fullmatch(r"(\w+)=([\d.]+)([KMGT]i?B)?", text)
  if not found:
    raise errors.InputError(
      f"--requirements: {text!r}; expected NAME=AMOUNT, such as h100=8"
    )
  name, amount, unit = found.groups()
  if unit is None:
    return name, float(amount)
  base = 1024 if "i" in unit else 1000
  return name, float(amount) * base ** (1 + "KMGT".index(unit[0]))
