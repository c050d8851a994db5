"""`python -m pivotrl_jax.data.importers PATH...`: what is in data files.

Prints a Markdown table of counts, a row a file or a folder of one-trajectory
files, and what was left out, by reason. `--show=N` prints N trajectories as
the model will see them.
"""

import argparse
import collections
from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import pathlib
import sys

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import importers
from pivotrl_jax.data.importers import terminus

_COLUMNS = (
  "source",
  "trajectories",
  "turns",
  "tool-call turns",
  "tool calls",
  "success",
)


def counts(
  trajectories: Iterable[types.Trajectory],
) -> dict[str, collections.Counter]:
  """Counts by source; a turn is an assistant message that is no context."""
  table: dict[str, collections.Counter] = {}
  for trajectory in trajectories:
    row = table.setdefault(trajectory.source, collections.Counter())
    turns = [
      m for m in trajectory.messages if m.role == "assistant" and not m.context
    ]
    row["trajectories"] += 1
    row["turns"] += len(turns)
    calls = [_calls(m) for m in turns]
    row["tool-call turns"] += sum(n > 0 for n in calls)
    row["tool calls"] += sum(calls)
    row["judged"] += trajectory.success is not None
    row["success"] += bool(trajectory.success)
  return table


def main(arguments: Sequence[str]) -> int:
  parsed = _parser().parse_args(arguments)
  skips: list[importers.Skip] = []
  try:
    found = _trajectories(parsed, skips)
    if parsed.show is None:
      print(_markdown(_grouped(counts(found))))
    else:
      _show(itertools.islice(found, parsed.show), parsed.model)
  except errors.InputError as error:
    print(error, file=sys.stderr)
    return 2
  for reason, seen in collections.Counter(s.reason for s in skips).items():
    print(f"left out: {seen} x {reason}")
  return 0


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m pivotrl_jax.data.importers",
    description="Counts the trajectories in files or folders, or shows them.",
  )
  parser.add_argument("path", nargs="+", type=pathlib.Path)
  parser.add_argument("--format", default="auto", help="data.format of a run")
  parser.add_argument(
    "--tools", default="", help="data.tools: a JSON file of schemas"
  )
  parser.add_argument(
    "--show",
    type=_count,
    metavar="N",
    help="print N trajectories as the model will see them",
  )
  parser.add_argument(
    "--model",
    type=pathlib.Path,
    help="directory of the tokenizer for --show; the mini policy's if none",
  )
  return parser


def _count(text):
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def _trajectories(parsed, skips):
  tools = importers.read_tools(parsed.tools)
  for path in parsed.path:
    path = path.expanduser()
    for item in importers.import_path(path, parsed.format, tools=tools):
      if isinstance(item, importers.Skip):
        skips.append(item)
      else:
        yield dataclasses.replace(item, source=_place(path, item.source))


def _show(found, model):
  # They take a while to import, and counts need none of them.
  from pivotrl_jax.chat import tokenizer as tokenizer_lib
  from pivotrl_jax.engines import policy
  from pivotrl_jax.report import show

  tokenizer = tokenizer_lib.load(
    policy.MINI if model is None else model.expanduser()
  )
  for trajectory in found:
    print(show.trajectory(tokenizer, trajectory), end="\n\n")


def _calls(message: types.Message) -> int:
  """Tool calls of a turn; a terminus reply calls its terminal in its text."""
  batch = terminus.commands(message.content)
  return len(message.tool_calls) or len(batch or ())


def _place(path, source):
  name, _, file = source.partition(":")
  within = "" if file == path.name else f"/{file}"
  return f"{name}:{path.name}{within}"


def _grouped(table):
  """Joins files of one trajectory each into a row for their folder."""
  grouped: dict[str, collections.Counter] = {}
  for source, row in table.items():
    if row["trajectories"] == 1:
      source = source.rpartition("/")[0] or source
    grouped.setdefault(source, collections.Counter()).update(row)
  return grouped


def _markdown(table):
  total = collections.Counter()
  for row in table.values():
    total.update(row)
  lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
  for source, row in [*table.items(), ("all", total)]:
    share = "not recorded"
    if row["judged"]:
      share = f"{row['success'] / row['judged']:.2f} (n={row['judged']})"
    lines.append(_line([source, *(row[c] for c in _COLUMNS[1:-1]), share]))
  return "\n".join(lines)


def _line(cells):
  return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
