"""Checkpoints in their authors' own layout -> folders that transformers' own classes read."""
