"""A run's folder: one run at a time, and which stages are done.

A stage's record in `.stages/` holds the hash of the config sections it reads,
and the contents' hashes of what it read and wrote. A stage is done while all
of these still hold.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax.data import records

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers")


@contextlib.contextmanager
def opened(path: pathlib.Path):
  """Makes the folder and holds its lock; the lock dies with the process.

  Raises:
    InputError: it cannot be made or written, or another run holds it.
  """
  try:
    (path / ".stages").mkdir(parents=True, exist_ok=True)
    lock = open(path / ".lock", "w")
  except OSError as error:
    raise errors.InputError(
      f"--workdir={path}: {error.strerror}; expected a writable folder"
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise errors.InputError(
        f"--workdir={path}: in use by another run; expected a free one"
      ) from error
    yield path


def digest(value: Any) -> str:
  """16 hex digits of a JSON value."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_done(path: pathlib.Path, stage: str, key: dict[str, Any]) -> bool:
  """Whether `stage` ended with this `key`, and its outputs still stand."""
  file = path / ".stages" / f"{stage}.json"
  try:
    record = json.loads(file.read_text())
  except (OSError, ValueError):
    return False
  return record["key"] == key and all(
    fingerprint(path / name) == found
    for name, found in record["outputs"].items()
  )


def begin(
  path: pathlib.Path, stage: str, key: dict[str, Any], partial: list[str]
) -> None:
  """Drops what an unfinished run of this stage left, unless its key is ours.

  Args:
    path: the workdir.
    stage: its name.
    key: what the stage's outputs are a function of.
    partial: files and folders that the stage resumes from.
  """
  file = path / ".stages" / f"{stage}.begun.json"
  if file.exists() and json.loads(file.read_text()) == key:
    return
  for name in partial:
    remove(path / name)
  records.write_text(file, [json.dumps(key)])


def mark_done(
  path: pathlib.Path, stage: str, key: dict[str, Any], outputs: list[str]
) -> None:
  """Records that `stage` is complete."""
  record = {
    "key": key,
    "outputs": {name: fingerprint(path / name) for name in outputs},
  }
  records.write_text(
    path / ".stages" / f"{stage}.json", [json.dumps(record, indent=2)]
  )


def fingerprint(path: pathlib.Path) -> str | None:
  """Hash of a file's bytes or of a folder's files; None where absent."""
  if path.is_dir():
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(p.relative_to(path)), fingerprint(p)] for p in files])
  if not path.exists():
    return None
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def stat_key(path: str) -> Any:
  """Names, sizes and times of what is outside the workdir."""
  root = pathlib.Path(path).expanduser()
  files = sorted(p for p in root.rglob("*") if p.is_file()) or [root]
  return digest(
    [
      [str(p), p.stat().st_size, p.stat().st_mtime_ns]
      for p in files
      if p.exists()
    ]
  )


def describe(config: dict[str, Any]) -> dict[str, Any]:
  """What config.json says: the config, its hash, versions, device, git."""
  import jax  # Late: a bad flag must not wait for it.

  device = jax.devices()[0]
  return {
    "config": config,
    "hash": digest(config),
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
    "device": {"kind": device.device_kind, "count": jax.device_count()},
    "git": _revision(),
  }


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _revision():
  """The commit of the checkout this package lies in, or None."""
  done = subprocess.run(
    ["git", "-C", os.path.dirname(__file__), "rev-parse", "HEAD"],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.stdout.strip() if not done.returncode else None
