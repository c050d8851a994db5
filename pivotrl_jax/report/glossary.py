"""What each metric is, in a title and one line of meaning."""

_LAST = "_last"  # Of several updates on one batch: the last one's.

METRICS: dict[str, tuple[str, str]] = {
  "rollout/reward_mean": (
    "Mean reward",
    "Of the step's rollouts; rises as the policy learns.",
  ),
  "rollout/turns": (
    "Rollout turns",
    "Actions that were sampled to learn from in this step.",
  ),
  "rollout/turns_total": (
    "Rollout turns so far",
    "Actions sampled up to here, the profile's included: the cost of the"
    " paper's Figure 1. What is only measured is not counted.",
  ),
  "rollout/episode_turns": (
    "Turns of an episode",
    "Mean over the step's episodes.",
  ),
  "rollout/prefix_breaks": (
    "Breaks of the prefix",
    "Turns whose prompt does not begin with all tokens of the turn before.",
  ),
  "rollout/tokens": ("Sampled tokens", "Of all rollouts of the step."),
  "rollout/rows": ("Sampled actions", "Rows that could be trained on."),
  "rollout/action_tokens": ("Tokens of an action", "Mean over the step."),
  "rollout/cut_off": (
    "Share cut off",
    "Actions that reached rollout.max_tokens before they ended.",
  ),
  "rollout/padding": (
    "Share of padding",
    "Of the tokens that the training step computes.",
  ),
  "rollout/no_verdict": (
    "Share without a verdict",
    "Samples that the judge did not answer on; they are left out.",
  ),
  "profile/turns": (
    "Turns of a further profile",
    "Sampled before this step, to choose the pivots anew.",
  ),
  "profile/mean": ("Its mean reward", "Under the policy in training."),
  "profile/pivots": ("Its pivots", "What is trained on from this step on."),
  "signal/reward_std": (
    "Reward std within groups",
    "The size of the learning signal (Theorem 3.2); 0 where groups agree.",
  ),
  "signal/reward_variance": (
    "Reward variance within groups",
    "Unbiased, mean over the groups.",
  ),
  "signal/zero_variance": (
    "Share of zero-variance groups",
    "Groups whose rewards are all alike: they teach nothing.",
  ),
  "signal/expected_gain": (
    "Expected gain",
    "What Theorem 3.2 predicts of a small step: E[std].",
  ),
  "train/loss": ("Loss", "The objective that the step goes down."),
  "train/grad_norm": ("Gradient norm", "Before it is clipped."),
  "train/update_norm": ("Update norm", "How far the parameters moved."),
  "train/entropy": (
    "Entropy",
    "Of the policy at the trained tokens, in nats; falls as it grows sure.",
  ),
  "train/clipped": (
    "Share clipped",
    "Tokens whose ratio is beyond the clip; 0 on a first update.",
  ),
  "train/kl": (
    "KL to the starting policy",
    "Estimated a trained token, in nats.",
  ),
  "train/mismatch": (
    "Engine against trainer",
    "Mean gap of a token's log-prob between the two.",
  ),
  "train/rejected": (
    "Share rejected",
    "Of actions with a token whose gap is over train.reject_gap.",
  ),
  "train/rows": (
    "Trained actions",
    "Those that move something: groups without variance are left out.",
  ),
  "train/tokens": ("Trained tokens", "Of these actions."),
  "train/natural_norm": (
    "Natural-gradient norm of the step",
    "Length of the gradient in the Fisher metric.",
  ),
  "train/natural_damping": (
    "Damping of the step",
    "What was added to the Fisher matrix.",
  ),
  "train/natural_kl": (
    "Predicted KL of the step",
    "By the quadratic model, in nats a token.",
  ),
  "train/natural_kl_measured": (
    "Measured KL of the step",
    "Kept under natural.max_kl, in nats a token.",
  ),
  "train/natural_scale": (
    "Scale of the step",
    "What the natural direction was multiplied by.",
  ),
  "train/natural_share": (
    "Share of the step taken",
    "Under 1 where the trust region made it shorter.",
  ),
  "ordering/kl": (
    "KL to the starting policy, an action",
    "Estimated from the step's rollouts, in nats.",
  ),
  "ordering/kl_inside": (
    "KL among accepted actions",
    "How the order of accepted actions moved; Theorem 3.3 wants 0.",
  ),
  "ordering/kl_outside": (
    "KL among rejected actions",
    "How the order of rejected actions moved; Theorem 3.3 wants 0.",
  ),
  "ordering/jump": (
    "Lift of accepted actions",
    "Mean log-ratio of accepted minus rejected actions.",
  ),
  "ordering/spread_inside": (
    "Spread among accepted actions",
    "Std of their log-ratios; 0 keeps their order.",
  ),
  "ordering/spread_outside": (
    "Spread among rejected actions",
    "Std of their log-ratios; 0 keeps their order.",
  ),
  "heldout/tau": (
    "Kendall tau on held-out prompts",
    "Whether answers that have nothing to do with the task keep their order;"
    " 1 is all of it.",
  ),
  "heldout/inversions": (
    "Inversions on held-out prompts",
    "Pairs of such answers that changed places.",
  ),
  "heldout/drift": (
    "Drift on held-out prompts",
    "Mean change of such an answer's log-prob, in nats.",
  ),
  "natural/norm": (
    "Natural-gradient norm of a group",
    "Of its advantages, at pivots.",
  ),
  "natural/predicted": (
    "Predicted norm",
    "The rms of the advantages, which the norm can at most reach.",
  ),
  "natural/captured": (
    "Captured share",
    "Norm over prediction, of groups with a signal.",
  ),
  "natural/reward_norm": (
    "Natural-gradient norm in reward",
    "Of a group's rewards, at pivots.",
  ),
  "natural/reward_std": (
    "Predicted norm in reward",
    "The std of the group's rewards (Theorem 3.2).",
  ),
  "mismatch/mean": (
    "Mean gap to the engine",
    "Of a token's log-prob in the engine and in the trainer, in nats.",
  ),
  "mismatch/p99": ("99th percentile of the gap", "Of the same."),
  "mismatch/max": ("Largest gap", "Of the same."),
  "mismatch/k3": (
    "KL between engine and trainer",
    "Estimator k3, in nats a token.",
  ),
  "mismatch/ess": (
    "Effective sample size",
    "Share that importance weights would leave; 1 is all.",
  ),
  "trie/tokens_separate": (
    "Tokens, nothing shared",
    "What rollouts and training would compute on separate sequences.",
  ),
  "trie/tokens_least": (
    "Tokens, everything shared",
    "With no token of a prompt computed twice.",
  ),
  "trie/tokens_computed": (
    "Tokens computed",
    "What was computed, padding included.",
  ),
  "trie/gap": (
    "Gap between trie and sequences",
    "Largest difference of a log-prob; rounding alone, or a fault.",
  ),
}
_RANDOM = "natural/random_"


def describe(metric: str) -> tuple[str, str]:
  """(title, meaning) of a metric as metrics.jsonl names it.

  A name that is not known is its own title, and means nothing.
  """
  if metric.startswith(_RANDOM):
    title, meaning = describe("natural/" + metric.removeprefix(_RANDOM))
    return f"{title}, random turns", meaning.replace(", at pivots", "")
  if metric.endswith(_LAST) and metric.removesuffix(_LAST) in METRICS:
    title, meaning = METRICS[metric.removesuffix(_LAST)]
    return f"{title}, last update", meaning
  return METRICS.get(metric, (metric, ""))
