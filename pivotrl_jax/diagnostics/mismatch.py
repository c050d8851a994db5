"""How far the engine's log-probs are from the trainer's, a step.

The engine samples from what it takes to be the policy; the trainer's own
forward pass says otherwise by a little: kernels, precision, stale weights.
"""

import numpy as np


def mismatch(gap: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
  """Scalars of a step's sampled tokens.

  Args:
    gap: `[S]` log pi_trainer - log pi_engine of every sampled token, action
      after action.
    lengths: `[N]` tokens of each action, which sum to S.

  Returns:
    "mean", "p99" and "max" of the absolute gap, in nats; "k3", an estimate of
    KL(engine || trainer) a token that is never negative; and "ess", the
    effective sample size of the actions under importance weights
    w = pi_trainer / pi_engine of whole actions, (sum w)^2 / (N sum w^2), as a
    share in (0, 1].
  """
  gap = np.asarray(gap, np.float64)
  far = np.abs(gap)
  whole = np.add.reduceat(gap, np.cumsum(lengths) - lengths)
  weights = np.exp(whole - whole.max())
  return {
    "mean": float(far.mean()),
    "p99": float(np.quantile(far, 0.99)),
    "max": float(far.max()),
    "k3": float((np.expm1(gap) - gap).mean()),
    "ess": float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())),
  }
