"""Checkpoints of a TrainState, written by orbax in the background."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from pivotrl_jax import errors


class Checkpoints:
  """The checkpoints of one run; a context manager that waits at its end.

  orbax writes a temporary folder and renames it: a step that was being
  written when the process died does not exist.
  """

  def __init__(self, path: pathlib.Path, *, keep: int):
    self._path = path
    self._manager = ocp.CheckpointManager(
      path.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def restore_latest(self, state: Any) -> Any:
    """The newest whole checkpoint, or `state` where there is none.

    Raises:
      InputError: it does not hold a state of this shape.
    """
    step = self._manager.latest_step()
    if step is None:
      return state
    place = self._path / str(step)
    found = self._manager.item_metadata(step)
    _check(place, getattr(found, "tree", found), state)
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(state))
    except (ValueError, KeyError, OSError) as error:
      first = str(error).splitlines()[0]
      raise errors.InputError(
        f"{place}: {first:.200}; expected a checkpoint of this policy"
      ) from error

  def save(self, step: int, state: Any) -> None:
    """Starts writing `state` as `step`."""
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def __exit__(self, *_) -> None:
    self._manager.wait_until_finished()
    self._manager.close()


def _check(place, found, state):
  """One clear line where a leaf is missing or has another shape."""
  if found is None:
    return
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)
  }
  wanted = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  for name, shape in wanted.items():
    if name in shapes and shapes[name] != shape:
      raise errors.InputError(
        f"{place}: {name} has shape {shapes[name]}; expected {shape}"
      )
