"""Subcommands of drone-kd that run on board, one file each."""
