"""The backend that a program is made for, by which models choose how to
compute.
"""

import jax

# Part of what `jit` caches by. None: the default backend. Another where a
# program is compiled for devices that are not there (dry_run/).
target = jax.make_user_context(None)


def name() -> str:
  """cpu | gpu | tpu."""
  return target.value or jax.default_backend()
