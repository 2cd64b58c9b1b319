"""Search over routing depth and capsule capacity on Ray Tune. Ray is imported late, in `search` only."""
