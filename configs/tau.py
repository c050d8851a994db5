"""Conversational tool use. Recorded trajectories: give --config.data.path."""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("tau", arg)
  config.verifier.single_step.word_count_similarity_threshold = 0.1
  return config
