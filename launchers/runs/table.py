"""The table of a sweep's runs: live on a terminal, or as it is now."""

from collections.abc import Sequence
import sys

from rich import console as rich_console
from rich import table as rich_table

from launchers.runs import status

_COLOURS = {
  "waiting": "dim", "running": "cyan", "done": "green", "failed": "bold red",
  "stopped": "yellow",
}  # fmt: skip
_WIDTH = 1000  # Where there is no terminal: a line a run, whatever its cause.


def console(stream) -> rich_console.Console:
  """Of a terminal's width, or wide enough for a line a run."""
  return rich_console.Console(
    file=stream, width=None if stream.isatty() else _WIDTH
  )


def table(
  rows: Sequence[tuple[str, status.Status]],
) -> rich_table.Table:
  """A line a run: state, stage, step, reward, success, seconds, cause."""
  found = rich_table.Table(box=None, pad_edge=False)
  for name in ("run", "state", "stage"):
    found.add_column(name, no_wrap=True)
  for name in ("step", "reward", "success", "seconds", "tries"):
    found.add_column(name, justify="right", no_wrap=True)
  found.add_column("cause", overflow="fold")
  for name, now in rows:
    found.add_row(
      name,
      f"[{_COLOURS[now.state]}]{now.state}[/]",
      now.stage,
      "" if now.step is None else str(now.step),
      "" if now.reward is None else f"{now.reward:.3f}",
      "" if now.success is None else f"{now.success:.1%}",
      f"{now.seconds:.0f}" if now.attempts else "",
      str(now.attempts or ""),
      now.cause.replace("[", r"\["),
    )
  return found


def summary(rows: Sequence[tuple[str, status.Status]]) -> str:
  """`12 runs: 3 done, 2 running, 7 waiting`."""
  counts = {state: 0 for state in _COLOURS}
  for _, now in rows:
    counts[now.state] += 1
  said = [f"{count} {state}" for state, count in counts.items() if count]
  return f"{len(rows)} runs: {', '.join(said)}"


def fitting(
  rows: Sequence[tuple[str, status.Status]], lines: int
) -> rich_console.Group:
  """The table and its summary; where it is too long, what runs or went wrong.

  Args:
    rows: name and standing of each.
    lines: most rows of the table.
  """
  order = ("running", "failed", "stopped", "waiting", "done")
  chosen = sorted(rows, key=lambda row: order.index(row[1].state))[:lines]
  some = [row for row in rows if row in chosen]
  return rich_console.Group(table(some), summary(rows))


def show(rows: Sequence[tuple[str, status.Status]]) -> None:
  """Prints the table as it is now."""
  out = console(sys.stdout)
  out.print(table(rows))
  out.print(summary(rows), highlight=False)
