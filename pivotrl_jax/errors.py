"""Errors that end a run with one line."""


class InputError(ValueError):
  """Bad input: a flag, config value, file, row or checkpoint.

  The message is one line that names the place, the value and what was
  expected. `main` prints it and exits with status 2.
  """


class EngineError(RuntimeError):
  """A server that samples for us failed for good; one line says which and how.

  Training keeps a checkpoint of the steps before; `main` prints the line and
  exits with status 1.
  """
