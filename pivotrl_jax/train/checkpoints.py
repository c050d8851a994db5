"""Checkpoints of a TrainState: whole or not there, and never trusted blindly.

orbax writes a folder in the background; checksums of its files go beside
them, and one rename makes it a checkpoint. So none is ever half written, and
one that was damaged since is found out when it is read.
"""

from concurrent import futures
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records

FOLDER = "checkpoints"  # Of a workdir.
_CHECKSUMS = "checksums.json"
_STEP = re.compile("0|[1-9][0-9]*")


class Checkpoints:
  """The checkpoints of one run; a context manager that waits at its end."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    keep: int,
    policy: str,
    keep_best: int = 0,
  ):
    """Looks at what is there; the first save makes the folder.

    Args:
      workdir: the run's.
      keep: how many of the newest stay.
      policy: hash of the weights the run started from.
      keep_best: how many stay beside them, those of the highest scores.
    """
    self._path = (workdir / FOLDER).absolute()
    # The newest step ever saved: a folder that is gone is missed.
    self._newest = workdir / ".stages" / "train.newest"
    self._keep, self._keep_best = keep, keep_best
    self._policy = policy
    self._orbax = ocp.StandardCheckpointer()
    self._pool = futures.ThreadPoolExecutor(1)
    self._saving: futures.Future | None = None
    if hosts.is_first():
      for place in self._path.glob("*.partial*"):
        workdir_lib.remove(place)

  def __enter__(self) -> "Checkpoints":
    return self

  def restore_latest(self, state: Any) -> tuple[int, Any] | None:
    """The newest whole checkpoint's step and state; None if none was saved.

    Damaged ones are named in a line each and set aside.

    Raises:
      InputError: none is whole, or it holds a state of another shape or run.
    """
    step, damage = hosts.first(self._newest_whole)
    if step is None:
      return None
    found = _load(self._path / str(step), state)
    if hosts.is_first():
      for bad, line in damage:
        logging.warning("%s; going on from step %d", line, step)
        _set_aside(self._path / str(bad))
      self._note(step)
    return step, found

  def _newest_whole(self):
    """The step of the newest whole checkpoint, None where there is none; and
    [step, what is wrong] of the damaged ones after it.
    """
    steps, damage = steps_of(self._path), []
    newest = self._saved_last()
    if newest is not None and newest not in steps:
      damage.append([newest, f"{self._path / str(newest)}: missing"])
    for step in reversed(steps):
      place = self._path / str(step)
      reason = find_damage(place)
      if reason is None:
        self._check_policy(place)
        return [step, damage]
      damage.append([step, reason])
    if not damage:
      return [None, []]
    raise errors.InputError(
      f"{damage[0][1]}; expected a whole checkpoint, and no other is there:"
      " --redo=train starts anew"
    )

  def save(
    self,
    step: int,
    state: Any,
    *,
    turns: int = 0,
    score: float | None = None,
  ) -> None:
    """Starts writing `state` as `step`, once the one before is written.

    Args:
      step: how many were taken.
      state: after them.
      turns: rollout turns that were sampled so far.
      score: how good it is, if that is known.
    """
    self._wait()
    partial = self._path / f"{step}.partial"
    try:
      self._path.mkdir(parents=True, exist_ok=True)
      self._orbax.save(partial, hosts.of_all(state))
    except (ValueError, OSError) as error:
      raise _unwritable(partial, error) from error
    more = {"turns": turns} | ({} if score is None else {"score": score})
    self._saving = self._pool.submit(self._commit, step, partial, more)

  def finish(self) -> None:
    """What was saved is a checkpoint when this returns, in all processes."""
    self._wait()
    hosts.barrier()

  def __exit__(self, *_) -> None:
    try:
      self._wait()
    finally:
      self._pool.shutdown()
      self._orbax.close()

  def _wait(self):
    if self._saving is not None:
      saving, self._saving = self._saving, None
      saving.result()

  def _commit(self, step, partial, more):
    """Runs in the background."""
    try:
      self._orbax.wait_until_finished()
      if not hosts.is_first():
        return
      _write_checksums(partial, step, {"policy": self._policy} | more)
    except (ValueError, OSError) as error:
      raise _unwritable(partial, error) from error
    os.rename(partial, self._path / str(step))
    self._note(step)
    older = steps_of(self._path)[: -self._keep]
    best = sorted(filter(self._score, older), key=self._score)
    for old in set(older) - set(best[len(best) - self._keep_best :]):
      unwanted = self._path / f"{old}.partial"
      os.rename(self._path / str(old), unwanted)
      shutil.rmtree(unwanted)

  def _check_policy(self, place):
    found = _read_checksums(place)["policy"]
    if found != self._policy:
      raise errors.InputError(
        f"{place}: of a run that started from policy {found}; expected"
        f" {self._policy}"
      )

  def _score(self, step):
    """Of a checkpoint, and the newer one before others; None without one."""
    found = _read_checksums(self._path / str(step))
    known = isinstance(found, dict) and "score" in found
    return (found["score"], step) if known else None

  def _saved_last(self):
    return int(self._newest.read_text()) if self._newest.exists() else None

  def _note(self, step):
    self._newest.parent.mkdir(exist_ok=True)
    records.write_text(self._newest, [f"{step}\n"])


def find(place: str) -> pathlib.Path:
  """The checkpoint that `WORKDIR` (its newest) or `WORKDIR/STEP` names.

  Raises:
    InputError: there is none.
  """
  path = pathlib.Path(place).expanduser()
  if _STEP.fullmatch(path.name) and not (path / FOLDER).is_dir():
    found, step = path.parent / FOLDER / path.name, path.name
  else:
    steps = steps_of(path / FOLDER)
    step = str(steps[-1]) if steps else "STEP"
    found = path / FOLDER / step
  if not found.is_dir():
    raise errors.InputError(
      f"--config.train.init={place}: {found} is missing; expected WORKDIR or"
      " WORKDIR/STEP of a run with checkpoints"
    )
  return found


def contents(place: pathlib.Path) -> str:
  """Names what a checkpoint holds: its step and a hash.

  Raises:
    InputError: its checksums cannot be read.
  """
  found = _read_checksums(place)
  if isinstance(found, str):
    raise errors.InputError(f"{found}; expected a checkpoint")
  return f"step {found['step']}, {found['sha256'][:16]}"


def turns(place: pathlib.Path) -> int:
  """The rollout turns that were sampled up to a whole checkpoint."""
  found = _read_checksums(place)
  if "turns" not in found:
    logging.warning(
      "%s: of a version that did not count rollout turns; rollout/turns_total"
      " counts from here",
      place,
    )
  return found.get("turns", 0)


def restore(place: pathlib.Path, state: Any) -> tuple[int, Any]:
  """Step and state of another run's checkpoint.

  Args:
    place: the checkpoint.
    state: a state of the shape wanted.

  Raises:
    InputError: it is damaged, or of another shape.
  """
  reason = hosts.first(lambda: find_damage(place))
  if reason is not None:
    raise errors.InputError(f"{reason}; expected a whole checkpoint")
  return _read_checksums(place)["step"], _load(place, state)


def steps_of(path: pathlib.Path) -> list[int]:
  """The steps of the checkpoints in a folder, rising."""
  if not path.is_dir():
    return []
  return sorted(int(p.name) for p in path.iterdir() if _STEP.fullmatch(p.name))


def find_damage(place: pathlib.Path) -> str | None:
  """What is wrong with a checkpoint's files, in a line; None if nothing."""
  written = _read_checksums(place)
  if isinstance(written, str):
    return written
  if str(written["step"]) != place.name:
    return f"{place}: holds step {written['step']}"
  for name, (size, digest) in written["files"].items():
    file = place / name
    try:
      if file.stat().st_size != size:
        return f"{file}: {file.stat().st_size} bytes instead of {size}"
      if _sha256(file) != digest:
        return f"{file}: its bytes changed since it was written"
    except OSError as error:
      return f"{file}: {error.strerror}"
  return None


def _write_checksums(place, step, more):
  """Sizes and hashes of all files, which are then on the disk."""
  files = sorted(p for p in place.rglob("*") if p.is_file())
  for file in files:
    with open(file, "rb") as handle:
      os.fsync(handle.fileno())
  row = {
    "step": step,
    **more,
    "files": {
      file.relative_to(place).as_posix(): [file.stat().st_size, _sha256(file)]
      for file in files
    },
  }
  row["sha256"] = _of_row(row)
  records.write_text(place / _CHECKSUMS, [json.dumps(row, indent=1) + "\n"])


def _read_checksums(place):
  """What `_write_checksums` wrote, or what is wrong with it."""
  file = place / _CHECKSUMS
  try:
    row = json.loads(file.read_bytes())
    whole = row.pop("sha256")
    if _of_row(row) == whole:
      return row | {"sha256": whole}
  except OSError as error:
    return f"{file}: {error.strerror}"
  except (ValueError, KeyError, AttributeError, TypeError):
    pass  # Said below, as of any other damage.
  return f"{file}: damaged"


def _of_row(row):
  return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _sha256(file):
  with open(file, "rb") as handle:
    return hashlib.file_digest(handle, "sha256").hexdigest()


def _load(place, state):
  """Reads a whole checkpoint into the shape and layout of `state`."""
  with ocp.StandardCheckpointer() as orbax:
    found = orbax.metadata(place.absolute()).item_metadata
    _check_shapes(place, found.tree, state)
    try:
      return orbax.restore(place.absolute(), state)
    except (ValueError, KeyError, OSError) as error:
      first = str(error).splitlines()[0]
      raise errors.InputError(
        f"{place}: {first:.200}; expected a checkpoint of this policy"
      ) from error


def _check_shapes(place, found, state):
  """One clear line where leaves are missing, too many or of another shape."""
  shapes, wanted = _shapes(found), _shapes(state)
  for name, shape in wanted.items():
    if shapes.get(name) != shape:
      has = f"shape {shapes[name]}" if name in shapes else "no value"
      raise errors.InputError(f"{place}: {name} has {has}; expected {shape}")
  for name in shapes.keys() - wanted.keys():
    raise errors.InputError(
      f"{place}: holds {name}; expected a state of this policy and optimizer"
    )


def _shapes(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _set_aside(place):
  """Out of the way of the step that is about to be taken again."""
  if place.exists():
    os.rename(place, workdir_lib.free(place.with_name(place.name + ".damaged")))


def _unwritable(path, error):
  if isinstance(error, OSError) and error.strerror:
    why = error.strerror
  else:  # tensorstore says where it was and, last before its own state, why.
    why = str(error).partition(" [")[0].rpartition(": ")[2]
  return errors.InputError(
    f"{path}: cannot write: {why:.200}; what is complete stays"
  )
