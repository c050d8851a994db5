"""All commands of the shell by name.

A command is what POSIX and GNU say of it, as far as it goes; an option that
it does not know is an error and not passed over.
"""

import posixpath

from pivotrl_jax.envs.terminal import files
from pivotrl_jax.envs.terminal import filters
from pivotrl_jax.envs.terminal import sessions


def _xargs(session, args, stdin):
  if not args or args[0] not in COMMANDS or args[0] == "xargs":
    return sessions.failed("xargs", "a command is expected")
  return COMMANDS[args[0]](session, args[1:] + stdin.split()[:100], "")


def _nothing(session, args, stdin):
  del session, args, stdin
  return sessions.Result()


def _name_of(part):
  """basename or dirname."""

  def run(session, args, stdin):
    del session, stdin
    return sessions.Result(
      sessions.joined(part(a.rstrip("/")) or "." for a in args)
    )

  return run


COMMANDS: dict[str, sessions.Command] = {
  **files.COMMANDS,
  **filters.COMMANDS,
  "basename": _name_of(posixpath.basename),
  "clear": _nothing,
  "dirname": _name_of(posixpath.dirname),
  "true": _nothing,
  "xargs": _xargs,
}
