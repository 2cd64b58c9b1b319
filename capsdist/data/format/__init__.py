"""The format of packed splits: shards, index, order, position, and the folder that they lie in."""
