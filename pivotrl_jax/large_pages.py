"""Large pages of memory, for which a process must ask before it begins.

A step on CPU takes its memory anew each time, and the kernel hands it out,
and clears it, page by page: with pages of 2 MiB for 4 KiB a step of the mini
policy takes an eighth less.
"""

import os
import sys

_NAME, _ASK = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def ask() -> None:
  """Begins this process anew, unless it has asked for large pages or had a
  say in it; only where its C library is glibc, and what runs is what its
  command names.
  """
  before = os.environ.get(_NAME, "")
  if _ASK in before or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
    return
  command, place = sys.orig_argv, len(sys.orig_argv) - len(sys.argv) + 1
  if command[place:] != sys.argv[1:]:
    return
  if command[place - 2] != "-m" and command[place - 1] != sys.argv[0]:
    return
  os.environ[_NAME] = ":".join(filter(None, (before, f"{_ASK}=1")))
  os.execv(sys.executable, [sys.executable, *command[1:]])
