"""Mismatch of engine and trainer: a golden worked by hand, and laws."""

import math

import numpy as np
import pytest

from pivotrl_jax.diagnostics import mismatch


def test_golden():
  # Two actions, of two tokens and of one: gaps of log 2, 0 and -log 2.
  a = math.log(2)
  got = mismatch.mismatch(np.array([a, 0.0, -a]), np.array([2, 1]))
  assert got["mean"] == pytest.approx(2 * a / 3)
  assert got["max"] == pytest.approx(a)
  assert got["p99"] == pytest.approx(a)
  # exp(g) - 1 - g: (2 - 1 - a) + 0 + (1/2 - 1 + a) = 1/2, over three tokens.
  assert got["k3"] == pytest.approx(1 / 6)
  # Weights 2 and 1/2: 2.5^2 / (2 * 4.25) = 6.25 / 8.5.
  assert got["ess"] == pytest.approx(6.25 / 8.5)


def test_agreement_has_no_gap_and_every_sample_counts():
  got = mismatch.mismatch(np.zeros(5), np.array([3, 2]))
  assert got == {"mean": 0, "p99": 0, "max": 0, "k3": 0, "ess": 1}


def test_an_action_far_off_leaves_its_like_alone():
  # One of four actions is e^100 times as likely in the trainer: it alone
  # counts, 1 of 4, and nothing overflows.
  got = mismatch.mismatch(np.array([100.0, 0, 0, 0]), np.ones(4, int))
  assert got["ess"] == pytest.approx(0.25)
  assert math.isfinite(got["k3"])
