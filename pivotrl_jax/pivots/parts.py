"""A profile in parts: each anywhere, in a workdir of its own, then merged.

Parts are cut between the engine's batches, and planned on all of them: so
each samples as the whole would, to the last bit.
"""

from collections.abc import Sequence
import glob
import json
import pathlib
import re
from typing import Any, TypeVar

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records

_PART, _BATCH = "profile.part", "trajectories_per_batch"
_SHOWN = 3  # Most values that a line names.

T = TypeVar("T")


def parse(text: str) -> tuple[int, int] | None:
  """`3/16` -> (3, 16); None where it is no part."""
  found = re.fullmatch("([1-9][0-9]*)/([1-9][0-9]*)", text)
  if not found or int(found[1]) > int(found[2]):
    return None
  return int(found[1]), int(found[2])


def own(part: str, batches: Sequence[T]) -> Sequence[T]:
  """The batches of `config.profile.part`; all where it is ""."""
  if not part:
    return batches
  index, count = parse(part)
  first, end = (len(batches) * i // count for i in (index - 1, index))
  return batches[first:end]


def merge(config: Any, workdir: pathlib.Path) -> None:
  """profiles.jsonl and skipped.jsonl of `config.profile.parts`.

  Args:
    config: the run's.
    workdir: whose profile has begun: its key is what the parts' must be.

  Raises:
    InputError: a part is missing, there twice, incomplete or of another run.
  """
  places = _in_order(_found(config.profile.parts))
  begun = json.loads((workdir / ".stages" / "profile.json").read_text())
  for place in places:
    _check_same(place, begun["key"], config.profile[_BATCH])
  skipped = [
    {k: v for k, v in row.items() if k != "stage"}
    for place in places
    if (place / "skipped.jsonl").exists()
    for _, row in records.read_jsonl(place / "skipped.jsonl")
    if row.get("stage") == "profile"
  ]
  records.replace_skipped(workdir, "profile", skipped)
  count = records.write_text(
    workdir / "profiles.jsonl",
    (
      line.decode("ascii")
      for place in places
      for _, line in records.read_lines(place / "profiles.jsonl")
    ),
  )
  # What was sampled here before is of no more use.
  (workdir / "profiles.jsonl.partial").unlink(missing_ok=True)
  logging.info("profile: %d candidates of %d parts", count, len(places))


def _found(given):
  """The workdirs that `config.profile.parts` names."""
  places = []
  for pattern in given.split(","):
    there = sorted(glob.glob(str(pathlib.Path(pattern.strip()).expanduser())))
    if not there:
      raise _bad(given, f"{pattern} is not there; expected workdirs of parts")
    places += map(pathlib.Path, there)
  return places


def _in_order(places):
  """The workdirs by their parts, every part once."""
  by_part, count = {}, None
  for place in places:
    record = workdir_lib.finished(place).get("profile", {"key": {}})
    part = record["key"].get(_PART)
    if part is None:
      raise _bad(place, "no finished part of a profile; expected one made with"
                 f" --config.{_PART}=I/N --stages=profile")  # fmt: skip
    index, of = parse(part)
    if count not in (None, of):
      raise _bad(place, f"part {part}; expected one of {count}, as the others")
    if index in by_part:
      raise _bad(place, f"part {part} is also {by_part[index]}; expected each"
                 " once")  # fmt: skip
    by_part[index], count = place, of
  missing = sorted(set(range(1, count + 1)) - by_part.keys())
  if missing:
    shown = ", ".join(f"{i}/{count}" for i in missing[:_SHOWN])
    raise _bad(places[0].parent, f"{len(missing)} of {count} parts are missing"
               f" ({shown}); expected all")  # fmt: skip
  return [by_part[index] for index in sorted(by_part)]


def _check_same(place, key, batch):
  """InputError where a part is not of the profile with this key."""
  record = workdir_lib.finished(place)["profile"]
  written = record["outputs"]["profiles.jsonl"]
  if workdir_lib.fingerprint(place / "profiles.jsonl") != written:
    raise _bad(place, "profiles.jsonl was edited; expected it as it was made")
  theirs = {k: v for k, v in record["key"].items() if k != _PART}
  described = json.loads((place / "config.json").read_text())["config"]
  # No part of a key, as it decides rounding only; but parts are cut by it.
  theirs[f"profile.{_BATCH}"] = described["profile"][_BATCH]
  ours = key | {f"profile.{_BATCH}": batch}
  differ = [
    f"{name} {theirs.get(name)!s:.80} instead of {ours.get(name)!s:.80}"
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  if differ:
    raise _bad(place, f"of another profile ({'; '.join(differ[:_SHOWN])});"
               " expected parts of this one")  # fmt: skip


def _bad(place, what):
  return errors.InputError(f"--config.profile.parts: {place}: {what}")
