"""Engines: how a step runs on one or many ranks. Plain PyTorch (with DDP), or DeepSpeed ZeRO."""
