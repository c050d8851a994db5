"""Trajectories of other projects -> ours; the `import` stage.

Containers (`files`: files -> rows) are apart from formats. A format is a small
module with two functions in the table below:

- `matches(value)`: whether a row or a document is of this kind. A list is put
  to it as a whole before it is taken for a list of rows.
- `read(file)`: yields a Trajectory or a Skip each. Where a row is a trajectory
  it is `chat.each_row(file, build)`, and `build(file, place, row)` is a pure
  function; where rows belong together it goes over `file.rows()` itself, and
  passes on every Skip that is among them.

The first row that some format knows decides which one a file is read as; a row
of another format is left out by name. No content is lost without a word: what
a record does not hold is refused with its place and key (`known`).
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
from pivotrl_jax.data.importers import claude_code
from pivotrl_jax.data.importers import codex
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import mini_swe_agent
from pivotrl_jax.data.importers import mirorl
from pivotrl_jax.data.importers import nemo_gym
from pivotrl_jax.data.importers import openai
from pivotrl_jax.data.importers import openhands
from pivotrl_jax.data.importers import openhands_events
from pivotrl_jax.data.importers import responses
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
  "claude_code": (claude_code.matches, claude_code.read),
  "codex": (codex.matches, codex.read),
  "openhands_events": (openhands_events.matches, openhands_events.read),
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
  "responses": (responses.matches, responses.read),
  "openai": (openai.matches, openai.read),
}
# Formats of which one run may lie in several files of a folder: `read` gets
# these as the `parts` of one `File`.
FOLDERS = ("claude_code", "openhands_events", "openhands")
# Domain -> the mini world's expert.
WORLDS = {"swe": swe_expert.demonstrate}


def detect(path: pathlib.Path) -> str | None:
  """The format of a file, by its first row of any; None if it has none."""
  return _survey(files.open_file(path, path.name, _is_row), "auto")[0]


def import_path(
  path: pathlib.Path,
  format_name: str = "auto",
  *,
  domain: str = "",
  tools: tuple[dict[str, Any], ...] = (),
) -> Iterator[types.Trajectory | Skip]:
  """Yields what a file, or every data file below a folder, holds.

  Args:
    path: a file or a folder; the containers are those of `files`.
    format_name: a key of `IMPORTERS`, or "auto": each file's own.
    domain: of the trajectories.
    tools: schemas for trajectories that come without any.

  Raises:
    errors.InputError: nothing there, or an unknown format.
  """
  if format_name != "auto" and format_name not in IMPORTERS:
    raise errors.InputError(
      f"data.format: {format_name!r}; expected world, auto,"
      f" {', '.join(sorted(IMPORTERS))}"
    )
  path = path.expanduser()
  seen: dict[str, str] = {}
  ids: set[str] = set()
  for item in _items(path, format_name):
    if isinstance(item, types.Trajectory):
      item = _once(item, seen)
    if isinstance(item, types.Trajectory):
      if tools and not item.tools:
        item = dataclasses.replace(item, tools=tools)
      yield _with_unique_id(item, domain, ids)
    else:
      yield item


def read_tools(path: str) -> tuple[dict[str, Any], ...]:
  """The schemas in a JSON file, a list of functions; () for no path.

  Raises:
    errors.InputError: it cannot be read, or holds something else.
  """
  if not path:
    return ()
  place = pathlib.Path(path).expanduser()
  try:
    text = place.read_bytes()
  except OSError as error:
    raise records.unreadable(place, error) from error
  return chat.wrap_tools(records.decode(text, path), path)


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
      tools=read_tools(config.data.tools),
    )
  skipped: list[dict[str, Any]] = []
  undescribed: list[str] = []
  taken = itertools.islice(
    _imported(source, skipped, undescribed), config.data.trajectories or None
  )
  count = records.write_jsonl(
    workdir / "trajectories.jsonl", map(records.trajectory_to_json, taken)
  )
  records.replace_skipped(workdir, "import", skipped)
  logging.info("import: %d trajectories, %d left out", count, len(skipped))
  if undescribed:
    logging.warning(
      "import: %d of %d trajectories call tools that they do not describe (%s);"
      " --config.data.tools=FILE gives schemas to those without any",
      len(undescribed), count, ", ".join(sorted(set(undescribed))[:5]),
    )  # fmt: skip
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


def _imported(source, skipped, undescribed):
  for item in source:
    if isinstance(item, types.Trajectory):
      undescribed += _undescribed(item)
      yield item
    else:
      place = {} if item.where is None else {"id": item.where}
      skipped.append({"file": item.file, **place, "reason": item.reason})


def _items(path: pathlib.Path, format_name: str) -> Iterator:
  """What each file holds, then what the files of a folder hold together."""
  together: dict[tuple[str, str], list[files.File]] = {}
  for found, name, reason in files.walk(path):
    if reason:
      yield Skip(name, None, reason)
      continue
    if path.is_dir() and files.is_side_file(found):
      logging.info("import: %s is no trajectory file", name)
      continue
    file = files.open_file(found, name, _is_row)
    chosen, skips = _survey(file, format_name)
    if chosen is None:
      yield from skips
      continue
    logging.info("import: %s is %s", name, chosen)
    if chosen in FOLDERS:
      key = chosen, str(found.parent)
      together.setdefault(key, []).append(file)
    else:
      yield from _read(file, chosen, format_name)
  for (chosen, _), parts in together.items():
    yield from _read(files.joined(parts), chosen, format_name)


def _format_of(value: Any) -> str | None:
  return next((n for n, (is_of, _) in IMPORTERS.items() if is_of(value)), None)


def _is_row(value: Any) -> bool:
  return _format_of(value) is not None


def _undescribed(trajectory: types.Trajectory) -> list[str]:
  """One tool that is called without a schema, if there is any."""
  described = {tool["function"]["name"] for tool in trajectory.tools}
  return [
    call.name
    for message in trajectory.messages
    for call in message.tool_calls
    if call.name not in described
  ][:1]


def _survey(
  file: files.File, format_name: str
) -> tuple[str | None, list[Skip]]:
  """A file's format, by its first row of one; else why it has none."""
  skips, strange = [], None
  for _, value in file.rows():
    if isinstance(value, Skip):
      skips.append(value)
      continue
    if format_name != "auto":
      chosen = format_name if IMPORTERS[format_name][0](value) else None
    else:
      chosen = _format_of(value)
    if chosen is not None:
      return chosen, []
    strange = strange or files.found(value)
  if strange is not None:
    what = f"not of data.format {format_name}"
    expected = f"rows of {format_name}"
    if format_name == "auto":
      what = "of no known format"
    expected = f"a chat under messages or conversations, or one of {_names()}"
    reason = f"{what}; found {strange}; expected {expected}"
    skips.append(Skip(file.name, None, reason))
  return None, skips


def _names():
  return ", ".join(sorted(IMPORTERS))


def _read(file: files.File, chosen: str, format_name: str) -> Iterator:
  """A file as of the format `chosen`; rows of another are left out."""
  read = IMPORTERS[chosen][1]

  def foreign(value: Any) -> str | None:
    other = chosen if format_name != "auto" else _format_of(value)
    is_of = other is not None and IMPORTERS[other][0](value)
    if is_of and IMPORTERS[other][1] is read:
      return None
    what = f"of format {other}" if is_of else files.found(value)
    return f"{what}; expected a row of {chosen}, as others of the file are"

  silent = True
  try:
    for item in read(dataclasses.replace(file, foreign=foreign)):
      silent = False
      yield item
    if silent:
      yield Skip(file.name, None, f"no trajectory in it, though of {chosen}")
  except errors.InputError as error:
    yield Skip(file.name, None, str(error))


def _once(trajectory, seen):
  """A Skip if another file had the same turns, as exports in two formats do.

  Equal rollouts within one file are samples of their own and stay.
  """
  name = trajectory.source.partition(":")[2]
  key = _fingerprint(trajectory)
  first = seen.setdefault(key, name)
  if first == name:
    return trajectory
  return Skip(name, trajectory.id, f"the same turns are in {first}")


def _fingerprint(trajectory: types.Trajectory) -> str:
  """What is said and called, up to the last turn: nothing after it is learnt.

  Results are left out: two logs of one run tell them in words of their own.
  """
  said = list(trajectory.messages)
  while said and said[-1].role != "assistant":
    said.pop()
  turns = [
    (
      m.role,
      m.content.strip(),
      [(c.name, _canonical(c.arguments)) for c in m.tool_calls],
    )
    for m in said
    if m.role != "tool"
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
