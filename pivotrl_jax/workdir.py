"""A run's folder: one run at a time; hashes of what lies in it and outside."""

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
import time
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax.data import records

# Path -> size, times, inode and hash of its bytes.
_HASHES: dict[str, list[Any]] = {}
_TICK = 2_000_000_000  # Nanoseconds; more than any file system's clock.
_KEPT = ".stages/hashes.json"
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
    with contextlib.suppress(FileNotFoundError, ValueError):
      _HASHES.update(json.loads((path / _KEPT).read_text()))
    yield path


def digest(value: Any) -> str:
  """16 hex digits of a JSON value."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Stage -> its record, of the stages that ended in a workdir."""
  found = {}
  for file in sorted((path / ".stages").glob("*.json")):
    record = json.loads(file.read_text())
    if record.get("outputs"):
      found[file.stem] = record
  return found


def take_over(path: pathlib.Path, source: pathlib.Path) -> list[str]:
  """Takes over what the stages of another workdir made, by hard links.

  A stage's record comes last, so that a take-over that was killed is made
  again. What this workdir has begun or done itself is left alone.

  Args:
    path: the workdir that takes over; its lock is held.
    source: the workdir whose finished stages are taken.

  Returns:
    The stages that were taken over.
  """
  taken = []
  for name, record in finished(source).items():
    ours = path / ".stages" / f"{name}.json"
    made = [n for n, hashed in record["outputs"].items() if hashed]
    if ours.exists() or not all((source / n).exists() for n in made):
      continue
    for output in made:
      _link(source / output, path / output)
    skipped = source / "skipped.jsonl"
    if skipped.exists():
      rows = [row for _, row in records.read_jsonl(skipped)]
      records.replace_skipped(
        path, name, [row for row in rows if row.get("stage") == name]
      )
    records.write_text(ours, [json.dumps(record, indent=1)])
    taken.append(name)
  return taken


def _link(source, target):
  """A file or folder under a second name; a copy on another disk."""
  temporary = target.with_name(f".{target.name}.link")
  remove(temporary)
  if source.is_dir():
    shutil.copytree(source, temporary, copy_function=_link_file)
  else:
    _link_file(source, temporary)
  if target.is_dir():
    remove(target)
  os.replace(temporary, target)


def _link_file(source, target):
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)


def fingerprint(path: pathlib.Path) -> str | None:
  """Hash of a file's bytes or of a folder's files; None where absent.

  Hidden files of a folder do not count. A file that was hashed before and has
  the size and times it had then is not read again.
  """
  if path.is_dir():
    files = {p.relative_to(path): p for p in path.rglob("*") if p.is_file()}
    return digest(
      [
        [name.as_posix(), fingerprint(files[name])]
        for name in sorted(files)
        if not any(part.startswith(".") for part in name.parts)
      ]
    )
  if not path.exists():
    return None
  stat = path.stat()
  place = str(path.absolute())
  seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
  if _HASHES.get(place, [None])[:-1] == seen:
    return _HASHES[place][-1]
  with open(path, "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()[:16]
  # What changed a moment ago may change again within a tick of the clock.
  if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _TICK:
    _HASHES[place] = [*seen, found]
  return found


def remember(path: pathlib.Path) -> None:
  """Keeps the hashes of files for the next start in this workdir."""
  records.write_text(path / _KEPT, [json.dumps(_HASHES)])


def free(path: pathlib.Path) -> pathlib.Path:
  """`path`, or the first of `path.2`, `path.3` ... that is not there."""
  found, count = path, 1
  while found.exists():
    count += 1
    found = path.with_name(f"{path.name}.{count}")
  return found


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
    "git": revision(),
  }


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def revision() -> str | None:
  """The commit of the checkout this package lies in, or None."""
  done = subprocess.run(
    ["git", "-C", os.path.dirname(__file__), "rev-parse", "HEAD"],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.stdout.strip() if not done.returncode else None
