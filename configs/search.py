"""Search agents. Recorded trajectories: give --config.data.path."""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("search", arg)
  config.verifier.single_step.word_count_similarity_threshold = 0.3
  return config
