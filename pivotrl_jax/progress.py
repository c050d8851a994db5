"""What a workdir already holds of a run: to skip, to go on from, to keep.

`.stages/NAME.json` says with which key a stage began, and how its outputs
looked when it ended. Another key never costs what was expensive to make: that
takes --redo, which moves it to `previous/`.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax import stages
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records

_REDO = ".stages/redo.json"
_SHOWN = 3  # Most changed keys that a line names.


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of a stage that has begun.

  Attributes:
    key: what decides its outputs; see `stages.key`.
    grown: values of the keys that it goes on to.
    init: `train.init` as it was given.
    outputs: hash of each when it ended; None before.
  """

  key: dict[str, Any]
  grown: dict[str, Any]
  init: str
  outputs: dict[str, Any] | None = None


def read(path: pathlib.Path, name: str) -> Record | None:
  """The record of a stage, None where it has not begun.

  Raises:
    InputError: an earlier version wrote it.
  """
  file = path / ".stages" / f"{name}.json"
  try:
    return Record(**json.loads(file.read_text()))
  except FileNotFoundError:
    if not file.with_suffix(".begun.json").exists():
      return None
  except (ValueError, TypeError):
    pass  # The same line.
  raise errors.InputError(
    f"{file}: the record of another version, which cannot be compared;"
    f" expected --redo={name}, which moves what it made to previous/, or"
    " another --workdir"
  )


def key(config: Any, path: pathlib.Path, name: str, **more: Any):
  """`stages.key`; what `train.init` named when the stage began stands."""
  found = read(path, name)
  init = config.train.init
  given = found.key.get("train.init") if found and found.init == init else None
  return stages.key(config, path, name, init=given, **more)


def check(
  config: Any,
  path: pathlib.Path,
  names: Sequence[str],
  anew: Sequence[str] = (),
) -> None:
  """Says before any work what cannot go on.

  Args:
    config: resolved.
    path: the workdir.
    names: of the stages to run.
    anew: stages that --redo names.

  Raises:
    InputError: a costly stage was made from other values or contents.
  """
  stale: dict[str, str] = {}
  expected: dict[str, Any] = {}
  for name in names:
    if name in _with_dependents(config, anew):
      continue
    stage, found = stages.stage(config, name), read(path, name)
    causes = [stale[n] for n in stages.makers(config, name) if n in stale]
    if found is not None:
      now = key(config, path, name, expected=expected)
      causes += _differences(found.key, now)
    if _costly(path, stage):
      causes += _unexplained(path, stage, found)
    if causes and _costly(path, stage):
      raise errors.InputError(
        f"--workdir={path}: {name} was made otherwise"
        f" ({'; '.join(dict.fromkeys(causes[:_SHOWN]))}); expected the same,"
        f" --redo={name}, which moves what it made to previous/, or another"
        " --workdir"
      )
    if found and causes:
      stale[name] = causes[0]
    elif found and found.outputs and found.grown == stages.grown(config, name):
      # An output that is gone or edited will be made again as it was.
      expected |= found.outputs


def is_done(config: Any, path: pathlib.Path, name: str) -> bool:
  """Whether a stage ended with this config, and its outputs still stand."""
  found = read(path, name)
  return (
    found is not None
    and found.outputs is not None
    and found.grown == stages.grown(config, name)
    and found.key == key(config, path, name)
    and all(
      workdir_lib.fingerprint(path / output) == hashed
      for output, hashed in found.outputs.items()
    )
  )


def begin(
  config: Any, path: pathlib.Path, name: str, aside: pathlib.Path
) -> None:
  """Readies a workdir for a stage: nothing that stands is overwritten.

  Args:
    config: resolved.
    path: the workdir.
    name: of the stage, which `check` let pass.
    aside: where its outputs of another key go.
  """
  stage, found = stages.stage(config, name), read(path, name)
  wanted = key(config, path, name)
  if found is not None and found.key != wanted:
    check(config, path, [name])
    causes = "; ".join(_differences(found.key, wanted)[:_SHOWN])
    logging.info("%s: made again: %s", name, causes)
    if stage.changed != "replace":
      _move(path, [*stage.outputs, *stage.resumes, *stage.logs], aside)
  elif found is not None and (edited := _edited(path, found)):
    logging.info("%s: made again: %s was edited", name, edited[0])
    _move(path, edited, aside)
  _write(
    path, name, Record(wanted, stages.grown(config, name), config.train.init)
  )


def finish(config: Any, path: pathlib.Path, name: str) -> None:
  """Records that a stage that began is complete."""
  outputs = stages.stage(config, name).outputs
  hashes = {n: workdir_lib.fingerprint(path / n) for n in outputs}
  _write(path, name, dataclasses.replace(read(path, name), outputs=hashes))


def redo(
  config: Any, path: pathlib.Path, names: Sequence[str], aside: pathlib.Path
) -> None:
  """Moves what stages made, and what was made from it, to `previous/`.

  The same order does nothing until its run has ended: a run that is killed
  and started again with --redo goes on.
  """
  wanted = _with_dependents(config, names)
  given = [stages.given(config, name) for name in wanted]
  order = {"redo": sorted(names), "given": workdir_lib.digest(given)}
  file = path / _REDO
  if file.exists() and json.loads(file.read_text()) == order:
    logging.info("--redo=%s: goes on", ",".join(names))
    return
  for name in wanted:
    stage = stages.stage(config, name)
    left = [f".stages/{p.name}" for p in path.glob(f".stages/{name}.*")]
    moved = _move(
      path, [*stage.outputs, *stage.resumes, *stage.logs, *left], aside
    )
    if moved:
      logging.info("%s: what it made is now in %s", name, aside)
  records.write_text(file, [json.dumps(order)])


def ended(path: pathlib.Path) -> None:
  """The run ended: the same --redo is a new one."""
  (path / _REDO).unlink(missing_ok=True)


def write_config(
  path: pathlib.Path, described: dict[str, Any], aside: pathlib.Path
) -> None:
  """config.json; one that said something else moves to `previous/`."""
  text = json.dumps(described, indent=2, sort_keys=True) + "\n"
  file = path / "config.json"
  if file.exists():
    if file.read_text() == text:
      return
    _move(path, [file.name], aside)
  records.write_text(file, [text])


def next_aside(path: pathlib.Path) -> pathlib.Path:
  """The folder in `previous/` that is this start's, should it need one."""
  folder = path / "previous"
  numbers = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
  return folder / str(max(numbers, default=0) + 1)


def _with_dependents(config, names):
  """Stages, and those that read what they make."""
  return [
    name
    for name in stages.STAGES
    if {name, *stages.needs(config, name)} & set(names)
  ]


def _costly(path, stage):
  """Whether there is something of a stage that would cost to make again."""
  return stage.changed == "refuse" and _filled(
    path, [*stage.outputs, *stage.resumes]
  )


def _filled(path, names):
  """Whether one of these is a file with bytes or a folder with files."""
  places = [path / name for name in names if (path / name).exists()]
  return any(
    any(place.iterdir()) if place.is_dir() else place.stat().st_size
    for place in places
  )


def _edited(path, found):
  """Outputs that are there, and not as the stage left them."""
  return [
    name
    for name, hashed in (found.outputs or {}).items()
    if workdir_lib.fingerprint(path / name) not in (hashed, None)
  ]


def _unexplained(path, stage, found):
  """Outputs that a costly stage would overwrite, and has no means to mend."""
  if found is None:
    return ["how is not recorded"]
  if _filled(path, stage.resumes):
    return []
  return [f"{name} was edited" for name in _edited(path, found)]


def _differences(old, new):
  """`name old -> new` of each that changed."""
  return [
    f"{stages.shown(name)} {old.get(name)!s:.80} -> {new.get(name)!s:.80}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]


def _move(path, names: Iterable[str], aside):
  """Moves what there is of `names` to `aside`; what was there."""
  there = [name for name in names if (path / name).exists()]
  for name in there:
    (aside / name).parent.mkdir(parents=True, exist_ok=True)
    os.rename(path / name, workdir_lib.free(aside / name))
  return there


def _write(path, name, record):
  text = json.dumps(dataclasses.asdict(record), indent=1)
  records.write_text(path / ".stages" / f"{name}.json", [text])
