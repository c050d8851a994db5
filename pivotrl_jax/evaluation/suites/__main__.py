"""`python -m pivotrl_jax.evaluation.suites`: samples, and the suites' power.

`--show=N` prints N questions of each suite with their answers. `--power=DIR`
puts every suite to a policy whose weights were disturbed by noise of growing
size and prints a Markdown table with 95 % intervals: a suite that can show
what training costs falls smoothly.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

import jax
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import seeds
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation import evaluate
from pivotrl_jax.evaluation import intervals
from pivotrl_jax.evaluation import suites
from pivotrl_jax.report import tables

NOISE = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)


def disturbed(params, size: float, seed: int):
  """Parameters with noise added, in the size of each array's own spread.

  Args:
    params: nested arrays.
    size: standard deviation of the noise over that of the array; an array
      all of whose values are alike counts by their root mean square.
    seed: of the noise.

  Returns:
    The same tree.
  """
  leaves, tree = jax.tree.flatten(params)
  rng = envs_base.generator("noise", seed)
  noisy = []
  for leaf in leaves:
    values = np.asarray(leaf, np.float32)
    spread = values.std() or np.sqrt((values**2).mean())
    noise = rng.standard_normal(values.shape, np.float32)
    noisy.append(values + size * spread * noise)
  return jax.tree.unflatten(tree, noisy)


def accuracies(
  policy: policy_lib.Policy,
  engine: base.Engine,
  asked: Sequence[suites.base.Question],
  sampling: base.SamplingParams,
) -> dict[str, float]:
  """The share of right answers by suite; greedy where sampling is."""
  said = evaluate.answers(
    policy,
    engine,
    [q.messages for q in asked],
    [seeds.row_seed("power", q.id) for q in asked],
    sampling,
  )
  right: dict[str, list[bool]] = {}
  for question, (action, _) in zip(asked, said, strict=True):
    right.setdefault(question.suite, []).append(
      suites.grade(question, action.content)
    )
  return {name: float(np.mean(found)) for name, found in right.items()}


def power(
  policy: policy_lib.Policy,
  engine: base.Engine,
  names: Sequence[str],
  *,
  noise: Sequence[float],
  count: int,
  max_tokens: int,
  temperature: float = 0.6,
  seed: int = 0,
) -> list[dict[str, float]]:
  """Accuracy by suite at each size of noise.

  Args:
    policy: whose weights are disturbed.
    engine: samples it.
    names: of the suites.
    noise: sizes, see `disturbed`.
    count: held-out questions of each suite.
    max_tokens: of an answer.
    temperature: of the answers; that of evaluation by default.
    seed: of questions and noise.
  """
  asked = [q for n in names for q in suites.questions(n, "eval", seed, count)]
  sampling = base.SamplingParams(
    max_tokens=max_tokens,
    temperature=temperature,
    stop_ids=policy.tokenizer.stop_ids,
  )
  found = []
  for size in noise:
    params = disturbed(policy.params, size, seed)
    engine.load(jax.device_put(params), f"noise {size}")
    found.append(accuracies(policy, engine, asked, sampling))
  return found


def main(arguments: Sequence[str]) -> int:
  parsed = _parser().parse_args(arguments)
  try:
    unknown = [s for s in parsed.suites if s not in suites.SUITES]
    if unknown:
      raise errors.InputError(
        f"suite {unknown[0]!r}; expected some of {', '.join(suites.SUITES)}"
      )
    names = parsed.suites or list(suites.SUITES)
    if parsed.show:
      _show(names, parsed.show)
    if parsed.power:
      _print_power(names, parsed)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _show(names, count):
  for name in names:
    print(f"=== {name}, for {suites.SUITES[name].STANDS_FOR}")
    for question in suites.questions(name, "train", 0, count):
      print(f"{question.draft.prompt}\n-> {question.draft.answer}\n")


def _print_power(names, parsed):
  # Any domain's config has what an engine wants.
  from configs import swe

  config = swe.get_config()
  policy = policy_lib.load(pathlib.Path(parsed.power), config)
  found = power(
    policy,
    policy_lib.engine(policy, config),
    names,
    noise=parsed.noise,
    count=parsed.count,
    max_tokens=config.rollout.max_tokens,
    temperature=config.evaluation.temperature,
  )
  table = power_table(found, parsed.noise, parsed.count)
  print(tables.markdown(table), end="")


def power_table(
  found: Sequence[dict[str, float]], noise: Sequence[float], count: int
) -> tables.Table:
  """What `power` found, with Wilson intervals; the last row is the mean.

  Args:
    found: accuracies by suite, one dict a size of noise.
    noise: the sizes.
    count: questions of each suite.
  """
  body = [
    (name, *(_cell(row[name], count) for row in found)) for name in found[0]
  ]
  means = [float(np.mean(list(row.values()))) for row in found]
  body.append(("mean", *(f"{100 * mean:.1f} %" for mean in means)))
  head = ("suite", *(f"noise {size:g} (95 %)" for size in noise))
  return head, body


def _cell(rate, count):
  low, high = intervals.wilson(round(rate * count), count)
  return f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m pivotrl_jax.evaluation.suites", description=__doc__
  )
  parser.add_argument("suites", nargs="*", metavar="SUITE")
  parser.add_argument("--show", type=int, default=0, help="samples of each")
  parser.add_argument("--power", metavar="DIR", help="a policy to disturb")
  parser.add_argument("--count", type=int, default=400, help="questions each")
  parser.add_argument(
    "--noise",
    type=lambda text: tuple(map(float, text.split(","))),
    default=NOISE,
    help="sizes, over the spread of each array",
  )
  return parser


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
