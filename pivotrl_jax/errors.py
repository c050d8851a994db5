"""The one exception that means "the input is wrong", not "the code is"."""


class InputError(ValueError):
  """Bad input: a flag, a config value, a file, a row or a checkpoint.

  The message is one line that names the place, the value and what was
  expected. `main` prints it and exits with status 2.
  """
