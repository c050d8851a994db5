"""Trajectories of other projects -> ours; the `import` stage.

Each format is a small module with `matches(value)`, which knows its own kind
of row or document, and `read(file)`, which yields a Trajectory or a Skip each.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import Any

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import atif
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import mini_swe_agent
from pivotrl_jax.data.importers import mirorl
from pivotrl_jax.data.importers import nemo_gym
from pivotrl_jax.data.importers import openai
from pivotrl_jax.data.importers import openhands
from pivotrl_jax.data.importers import smolagents
from pivotrl_jax.data.importers import swe_agent
from pivotrl_jax.data.importers import swe_smith
from pivotrl_jax.data.importers import tau2
from pivotrl_jax.data.importers import tau_bench
from pivotrl_jax.data.importers import terminus
from pivotrl_jax.data.importers import webdancer
from pivotrl_jax.envs import swe_expert

Skip = files.Skip
Reader = Callable[[files.File], Iterator[types.Trajectory | Skip]]

# Format -> (knows its rows, reads a file). `detect` takes the first that
# matches, so the formats whose rows look like another's come before it.
IMPORTERS: dict[str, tuple[Callable[[Any], bool], Reader]] = {
  "tau2": (tau2.matches, tau2.read),
  "tau_bench": (tau_bench.matches, tau_bench.read),
  "mini_swe_agent": (mini_swe_agent.matches, mini_swe_agent.read),
  "openhands": (openhands.matches, openhands.read),
  "swe_agent": (swe_agent.matches, swe_agent.read),
  "swe_smith": (swe_smith.matches, swe_smith.read),
  "terminus": (terminus.matches, terminus.read),
  "atif": (atif.matches, atif.read),
  "webdancer": (webdancer.matches, webdancer.read),
  "mirorl": (mirorl.matches, mirorl.read),
  "smolagents": (smolagents.matches, smolagents.read),
  "nemo_gym_pivots": (nemo_gym.matches_pivots, nemo_gym.read_pivots),
  "nemo_gym_rollouts": (nemo_gym.matches_rollouts, nemo_gym.read_rollouts),
  "openai": (openai.matches, openai.read),
}
# Domain -> the mini world's expert.
WORLDS = {"swe": swe_expert.demonstrate}


def detect(path: pathlib.Path) -> str | None:
  """The format of a file, by its first row; None if it is of none."""
  return _detect(files.open_file(path, path.name))


def import_path(
  path: pathlib.Path, format_name: str = "auto", *, domain: str = ""
) -> Iterator[types.Trajectory | Skip]:
  """Yields what a file, or every data file below a folder, holds.

  Args:
    path: plain or gzip; JSON, JSONL, or parquet where pyarrow is installed.
    format_name: a key of `IMPORTERS`, or "auto": each file's own.
    domain: of the trajectories.

  Raises:
    errors.InputError: nothing there, an unknown format, an unreadable file.
  """
  if format_name != "auto" and format_name not in IMPORTERS:
    raise errors.InputError(
      f"data.format: {format_name!r}; expected world, auto,"
      f" {', '.join(sorted(IMPORTERS))}"
    )
  path = path.expanduser()
  seen: dict[str, str] = {}
  ids: set[str] = set()
  for found, name in files.walk(path):
    if path.is_dir() and files.is_side_file(found):
      logging.info("import: %s is no trajectory file", name)
      continue
    file = files.open_file(found, name)
    for item in _read(file, format_name, lone=path.is_file()):
      if isinstance(item, types.Trajectory):
        item = _once(item, name, seen)
      if isinstance(item, types.Trajectory):
        yield _with_unique_id(item, domain, ids)
      else:
        yield item


def run(config: Any, workdir: pathlib.Path) -> None:
  """`config.data` -> trajectories.jsonl and this stage's skipped.jsonl."""
  if config.data.format == "world":
    source = _demonstrations(config)
  else:
    if not config.data.path:
      raise errors.InputError(
        f"data.path: {config.data.path!r}; expected a file or a folder, since"
        f" data.format is {config.data.format!r}"
      )
    source = import_path(
      pathlib.Path(config.data.path),
      config.data.format,
      domain=config.domain,
    )
  skipped: list[dict[str, Any]] = []
  taken = itertools.islice(
    _imported(source, skipped), config.data.trajectories or None
  )
  count = records.write_jsonl(
    workdir / "trajectories.jsonl", map(records.trajectory_to_json, taken)
  )
  records.replace_skipped(workdir, "import", skipped)
  logging.info("import: %d trajectories, %d left out", count, len(skipped))
  if not count:
    reason = skipped[0]["reason"] if skipped else "no data file"
    raise errors.InputError(
      f"{config.data.path}: no trajectory imported ({reason}); expected"
      f" data.format {config.data.format}"
    )


def _demonstrations(config: Any) -> Iterator[types.Trajectory]:
  if config.domain not in WORLDS:
    raise errors.InputError(
      f"data.format: 'world', but the domain {config.domain!r} has no mini"
      f" world; expected one of {', '.join(WORLDS)}, or data.format and"
      " data.path of recorded trajectories"
    )
  for index in range(config.data.trajectories):
    yield WORLDS[config.domain](index, "train", config.seed, poor=0.0)


def _imported(source, skipped):
  for item in source:
    if isinstance(item, types.Trajectory):
      yield item
    else:
      place = {} if item.where is None else {"id": item.where}
      skipped.append({"file": item.file, **place, "reason": item.reason})


def _detect(file: files.File) -> str | None:
  for _, value in file.rows():
    for name, (matches, _) in IMPORTERS.items():
      if matches(value):
        return name
    return None
  return None


def _read(file, format_name, *, lone):
  """A file by its own format; in a folder only those of `format_name`."""
  if format_name == "auto":
    chosen = _detect(file)
    if chosen is None:
      reason = f"of no known format; expected {', '.join(sorted(IMPORTERS))}"
      yield Skip(file.name, None, reason)
      return
    logging.info("import: %s is %s", file.name, chosen)
  else:
    chosen = format_name
    first = next(iter(file.rows()), (None, None))[1]
    if not IMPORTERS[chosen][0](first) and not lone:
      yield Skip(file.name, None, f"not of data.format {chosen}")
      return
  yield from IMPORTERS[chosen][1](file)


def _once(trajectory, name, seen):
  """A Skip if another file had the same turns, as exports in two formats do.

  Equal rollouts within one file are samples of their own and stay.
  """
  key = _fingerprint(trajectory)
  first = seen.setdefault(key, name)
  if first == name:
    return trajectory
  return Skip(name, trajectory.id, f"the same turns are in {first}")


def _fingerprint(trajectory: types.Trajectory) -> str:
  turns = [
    (
      m.content.strip(),
      [(c.name, _canonical(c.arguments)) for c in m.tool_calls],
    )
    for m in trajectory.messages
    if m.role in ("system", "assistant")
  ]
  whole = [turns, trajectory.extra]
  return hashlib.sha256(records.encode(whole).encode()).hexdigest()


def _canonical(arguments: str) -> str:
  try:
    return json.dumps(json.loads(arguments), sort_keys=True)
  except (ValueError, RecursionError):
    return arguments


def _with_unique_id(trajectory, domain, ids):
  unique = trajectory.id
  for n in itertools.count(2):
    if unique not in ids:
      break
    unique = f"{trajectory.id}#{n}"
  ids.add(unique)
  return dataclasses.replace(trajectory, id=unique, domain=domain)
