"""Grids over config overrides: pure lists of dicts, and the runs they name.

A sweep is a file with `get_sweep()`, which returns a list of dicts. A key is
one of the config (`train.steps`), `config` (the config file, as main takes
it) or `arm` (the name of what is compared; `compare.py` averages over seeds
within an arm).
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from pivotrl_jax import config_check
from pivotrl_jax import errors

Grid = list[dict[str, Any]]

_OWN = ("config", "arm")  # Keys of a row that are not the config's.
_LONGEST = 120  # Characters of a run's name; file systems allow 255.


def over(key: str, values: Sequence[Any]) -> Grid:
  """One row a value."""
  return [{key: value} for value in values]


def product(*grids: Grid) -> Grid:
  """Every row of each with every row of the others; the last varies fastest.

  Raises:
    ValueError: two of them set the same key.
  """
  return [_merged(rows) for rows in itertools.product(*grids)]


def zipped(*grids: Grid) -> Grid:
  """The first rows together, the second together, and so on.

  Raises:
    ValueError: their lengths differ, or two set the same key.
  """
  lengths = [len(grid) for grid in grids]
  if len(set(lengths)) > 1:
    raise ValueError(f"grids of {lengths} rows; expected the same length")
  return [_merged(rows) for rows in zip(*grids)]


def chain(*grids: Grid) -> Grid:
  """The rows of one after those of the other."""
  return [row for grid in grids for row in grid]


def _merged(rows):
  found: dict[str, Any] = {}
  for row in rows:
    twice = found.keys() & row.keys()
    if twice:
      raise ValueError(f"{min(twice)!r} is set by two grids; expected one")
    found |= row
  return found


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    name: from what varies; the run's folder.
    arm: what it is compared as: all that varies but the seed.
    config: the config file with its argument.
    overrides: key of the config -> value.
  """

  name: str
  arm: str
  config: str
  overrides: dict[str, Any]

  def flags(self) -> list[str]:
    """The run as flags of main."""
    return [f"--config={self.config}"] + [
      f"--config.{key}={value}" for key, value in self.overrides.items()
    ]


def runs(grid: Grid) -> list[Run]:
  """The runs of a grid, in its order.

  Raises:
    InputError: a row has no config, or two rows are the same run.
  """
  if not grid:
    raise errors.InputError("sweep: no rows; expected one or more")
  for number, row in enumerate(grid, 1):
    if not row.get("config"):
      raise errors.InputError(
        f"sweep: row {number} has no config; expected"
        ' {"config": "configs/swe.py"} in its grid'
      )
  keys = list(dict.fromkeys(key for row in grid for key in row))
  keys.sort(key=lambda key: key == "seed")  # Last in a name.
  arms = {}
  for row in grid:
    arms.setdefault(row.get("arm"), []).append(row)
  # What an arm's rows have in common, its name says.
  varying = [
    key
    for key in keys
    if key != "arm" and any(_varies(rows, key) for rows in arms.values())
  ]
  found = [
    Run(
      name=_name(row, varying),
      arm=row.get("arm") or _name(row, [k for k in varying if k != "seed"]),
      config=row["config"],
      overrides={k: v for k, v in row.items() if k not in _OWN},
    )
    for row in grid
  ]
  for name, same in _grouped(found).items():
    if len(same) > 1:
      raise errors.InputError(
        f"sweep: {len(same)} rows give the run {name!r}; expected one each"
      )
  return found


def load(path: str, scale: str | None = None) -> list[Run]:
  """The runs of a sweep file.

  Args:
    path: of the file.
    scale: what its get_sweep takes; None for its default.

  Raises:
    InputError: there is no such file, no get_sweep in it, or no such scale.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise errors.InputError(
      f"--sweep: {path}; expected a file such as launchers/sweeps/smoke.py"
    )
  spec = importlib.util.spec_from_file_location(f"sweep_{file.stem}", file)
  if spec is None:
    raise errors.InputError(f"--sweep: {path}; expected a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    grid = module.get_sweep(*filter(None, [scale]))
  except (
    AttributeError, SyntaxError, ImportError, TypeError, ValueError
  ) as error:  # fmt: skip
    raise errors.InputError(f"--sweep: {path}: {error}") from error
  return runs(grid)


def resolve(run: Run) -> Any:
  """The config of a run: its file with the overrides, typed as by main.

  Raises:
    InputError: a misspelt key, or a value of the wrong type or out of range.
  """
  file = run.config.partition(":")[0]
  if not pathlib.Path(file).is_file():
    raise errors.InputError(
      f"{run.name}: --config={run.config}: no file {file}; expected one such"
      " as configs/swe.py"
    )
  found = flags.FlagValues()
  argv = ["", *run.flags()]
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=found, sys_argv=argv
  )
  try:
    found(argv)
    config = holder.value
  except (
    flags.Error, AttributeError, KeyError, TypeError, ValueError
  ) as error:  # fmt: skip
    lines = str(error.args[0] if error.args else error).splitlines()
    said = lines[-1] if "Traceback" in str(error) else " ".join(lines)
    raise errors.InputError(f"{run.name}: {said}") from error
  config_check.expand(config)
  try:
    config_check.check_values(config)
  except errors.InputError as error:
    raise errors.InputError(f"{run.name}: {error}") from error
  return config


def _varies(rows, key):
  missing = object()
  first = rows[0].get(key, missing)
  return any(row.get(key, missing) != first for row in rows)


def _grouped(found):
  groups = {}
  for run in found:
    groups.setdefault(run.name, []).append(run)
  return groups


def _name(row, varying):
  """`arm,key=value,...`, as a folder can be called."""
  short = [key.rpartition(".")[2] for key in varying]
  parts = [row["arm"]] if row.get("arm") else []
  for key, label in zip(varying, short, strict=True):
    if key in row:
      label = label if short.count(label) == 1 else key
      parts.append(f"{label}={_text(key, row[key])}")
  name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join(parts)) or "default"
  if len(name) <= _LONGEST:
    return name
  text = json.dumps(row, sort_keys=True, default=str)
  mark = hashlib.sha256(text.encode()).hexdigest()[:8]
  return f"{name[: _LONGEST - 9]},{mark}"


def _text(key, value):
  """A config file by its name alone."""
  if key != "config":
    return str(value)
  path, given, argument = value.partition(":")
  return pathlib.PurePath(path).stem + (f"-{argument}" if given else "")
