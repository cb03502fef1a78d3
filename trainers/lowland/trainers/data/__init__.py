"""Text as packed token shards: preparing them, and reading them memory-mapped in a fixed order.

sources → readers → documents → packing → shards, manifest        (`prepare_unit`, `assemble`)
manifest → split → order → batches                                (`PackedSplit`, `TrainBatches`)
"""
