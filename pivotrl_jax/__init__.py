"""PivotRL in JAX: post-training of agents from trajectories one has."""

import os

# Before transformers is imported: it has nothing to say to us without torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
