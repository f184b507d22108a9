"""A study: one profile, one folder, a graph of stages, the sweeps of its ablations and what they cost."""
