"""Families of checkpoints of which something is known (`icl_interp.testing.families`); one file a kind."""
