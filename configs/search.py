"""Search agents. The embedded default: the mini search world."""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("search", arg)
  config.verifier.single_step.word_count_similarity_threshold = 0.3
  if not common.parse_arg(arg)["paper"]:
    config.data.format = "world"
    config.e2e.max_turns = config.evaluation.max_turns = 10
  return config
