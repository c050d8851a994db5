"""verify(demonstration, action) -> Verdict; the table of verifiers."""

from collections.abc import Mapping, Sequence
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.verifiers import judge as judge_lib
from pivotrl_jax.verifiers import single_step
from pivotrl_jax.verifiers import strict
from pivotrl_jax.verifiers import swe_pivot
from pivotrl_jax.verifiers import terminal_multi_harness
from pivotrl_jax.verifiers import terminus_judge

SETTINGS = ("default", "compat")
# Name -> (verifier, its options with their defaults).
VERIFIERS = {
  "single_step": (single_step.verify, single_step.DEFAULTS),
  "swe_pivot": (swe_pivot.verify, swe_pivot.DEFAULTS),
  "terminus_judge": (terminus_judge.verify, terminus_judge.DEFAULTS),
  "terminal_multi_harness": (
    terminal_multi_harness.verify,
    terminal_multi_harness.DEFAULTS,
  ),
  "strict": (strict.verify, {}),
}


def verify(
  name: str,
  demonstration: types.Action,
  action: types.Action | types.ParseFailure,
  *,
  tools: Sequence[Mapping[str, Any]] = (),
  config: Mapping[str, Any] | None = None,
  setting: str = "default",
  row: Mapping[str, Any] | None = None,
  judge: judge_lib.Judge | None = None,
) -> types.Verdict:
  """Scores an action against the demonstration.

  Args:
    name: a key of `VERIFIERS`.
    demonstration: the label.
    action: what the model did; output that is no action gets 0.
    tools: schemas in force.
    config: options other than their defaults.
    setting: "default", or "compat" for the original's rewards.
    row: further fields of an imported pivot row.
    judge: an LLM to ask, for the verifiers that do.

  Raises:
    InputError: an unknown verifier, setting or option, or no judge where one
      is needed.
  """
  check(name, config or {}, setting)
  if isinstance(action, types.ParseFailure):
    return types.Verdict(0.0, action.reason)
  run, defaults = VERIFIERS[name]
  try:
    return run(
      demonstration,
      action,
      tools=tools,
      config={**defaults, **(config or {})},
      setting=setting,
      row=row or {},
      judge=judge,
    )
  except RecursionError:  # Values nested deeper than they can be compared.
    return types.Verdict(0.0, "too_deeply_nested")


def check(name: str, config: Mapping[str, Any], setting: str) -> None:
  """InputError where a verifier is asked for what it does not have."""
  if name not in VERIFIERS:
    raise errors.InputError(
      f"verifier.name: {name!r}; expected one of {sorted(VERIFIERS)}"
    )
  if setting not in SETTINGS:
    raise errors.InputError(
      f"verifier.setting: {setting!r}; expected one of {SETTINGS}"
    )
  unknown = sorted(set(config) - set(VERIFIERS[name][1]))
  if unknown:
    raise errors.InputError(
      f"verifier {name}: option {unknown[0]!r}; expected some of"
      f" {sorted(VERIFIERS[name][1])}"
    )
