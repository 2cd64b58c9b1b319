"""The folder of a run: configuration, checkpoints, lock, rows and result, on a disk or in object storage."""
