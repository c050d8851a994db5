"""Conversational tool use. The embedded default: the mini tau world."""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("tau", arg)
  config.verifier.single_step.word_count_similarity_threshold = 0.1
  if not common.parse_arg(arg)["paper"]:
    config.data.format = "world"
    # A customer acts on what is said: a refusal is no report.
    config.verifier.single_step.message_similarity_threshold = 0.075
    config.e2e.max_turns = config.evaluation.max_turns = 12
  return config
