"""A process that asks for large pages begins anew once, as it was started."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ASKED = "glibc.malloc.hugetlb=1"
CLEAN = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
SCRIPT = """
import os, sys
from pivotrl_jax import large_pages
print(os.getpid(), flush=True)
large_pages.ask()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], sep="|")
"""


@pytest.mark.skipif(
  "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not glibc"
)
@pytest.mark.parametrize(
  ("before", "after", "starts"),
  [
    ({}, ASKED, 2),
    ({"GLIBC_TUNABLES": "glibc.malloc.check=0"},
     f"glibc.malloc.check=0:{ASKED}", 2),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
     "glibc.malloc.hugetlb=0", 1),
  ],
)  # fmt: skip
def test_begins_anew_once(tmp_path, before, after, starts):
  script = tmp_path / "script.py"
  script.write_text(SCRIPT)
  said = subprocess.run(
    [sys.executable, "-W", "error", script, "a b", "--c=*"],
    env=CLEAN | before | {"PYTHONPATH": str(ROOT)},
    capture_output=True, text=True, check=True,
  ).stdout.splitlines()  # fmt: skip
  *pids, last = said
  assert last == f"{after}|a b|--c=*"
  assert len(pids) == starts and len(set(pids)) == 1


@pytest.mark.parametrize("given", [[], ["--workdir=x"]])
def test_not_where_another_program_runs_it(given):
  """As a server of forks does, whose own command is not to be run again."""
  code = f"import sys; sys.argv = ['main.py', *{given}]" + SCRIPT
  said = subprocess.run(
    [sys.executable, "-c", code], env=CLEAN, cwd=ROOT,
    capture_output=True, text=True, check=True,
  ).stdout.splitlines()  # fmt: skip
  assert len(said) == 2 and said[1] == "|".join(["None", *given])
