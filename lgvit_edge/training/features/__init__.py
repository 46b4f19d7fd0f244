"""What the frozen backbone gives to the exits in stage 2: per batch, or kept on disk."""
