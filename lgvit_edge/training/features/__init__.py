"""Outputs of the frozen backbone that stage 2 trains on: per batch, in memory, or on disk."""
