"""Whether an optimizer computes the same however a training is sharded: tried, not assumed."""
