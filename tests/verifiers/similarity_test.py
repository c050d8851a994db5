"""difflib is the truth where it is asked; bounds never flip a decision."""

import difflib
import inspect
import statistics
import time

import hypothesis
from hypothesis import strategies as st
import pytest

from pivotrl_jax.verifiers import similarity

TEXT = st.text(alphabet="ab \n", max_size=60)


def reference(a, b, autojunk=False):
  return difflib.SequenceMatcher(None, a, b, autojunk=autojunk).ratio()


@hypothesis.settings(max_examples=2000)
@hypothesis.given(TEXT, TEXT)
def test_compat_is_difflib(a, b):
  assert similarity.ratio(a, b, autojunk=True) == reference(a, b, True)


@hypothesis.settings(max_examples=2000)
@hypothesis.given(TEXT, TEXT, st.floats(0.05, 1.0))
def test_a_floor_changes_no_decision(a, b, least):
  for autojunk in (False, True):
    exact = similarity.ratio(a, b, autojunk=autojunk)
    bounded = similarity.ratio(a, b, least=least, autojunk=autojunk)
    assert (bounded >= least) == (exact >= least)
    assert bounded == exact or (exact <= bounded < least)


@hypothesis.given(TEXT, TEXT, TEXT, TEXT)
def test_what_begins_and_ends_alike_counts_in_full(start, a, b, end):
  left, right = start + a + end, start + b + end
  shared = 2 * (len(start) + len(end))
  got = similarity.ratio(left, right)
  if left != right:
    assert got * (len(left) + len(right)) >= shared - 1e-9
  assert got == 1.0 or left != right


def test_golden():
  # Common: "ab", then "cd" of "xcd" and "cdy": 2 * 4 / 10.
  assert similarity.ratio("abxcd", "abcdy") == pytest.approx(0.8)
  # Nothing is left of one side: 2 * 3 / 7.
  assert similarity.ratio("abc", "abcd") == pytest.approx(6 / 7)
  assert similarity.ratio("", "") == 1.0
  assert similarity.ratio("", "a") == 0.0


def test_long_middles_are_compared_in_windows():
  a = "x" + "ab\n" * 9_000 + "y"
  b = "y" + "ab\n" * 9_000 + "x"
  assert similarity.ratio(a, b) > 0.99
  assert similarity.ratio("p" * 30_000, "q" * 30_000) == 0.0


def test_twenty_times_faster_than_difflib_on_long_edits():
  """2,000-character edits of real code: one line in it is another."""
  source = inspect.getsource(difflib)
  pairs = []
  for i in range(8):
    text = source[i * 2000 : (i + 1) * 2000]
    at = text.index("\n", 300 + 150 * i)
    pairs.append((text, f"{text[:at]}\n    changed = {i}{text[at:]}"))

  def seconds(function):
    found = []
    for a, b in pairs:
      start = time.perf_counter()
      function(a, b)
      found.append(time.perf_counter() - start)
    return statistics.median(found)

  assert seconds(similarity.ratio) * 20 < seconds(reference)
  similarity.ratio.cache_clear()
  plain = seconds(lambda a, b: difflib.SequenceMatcher(None, a, b).ratio())
  assert seconds(similarity.ratio) * 20 < plain
