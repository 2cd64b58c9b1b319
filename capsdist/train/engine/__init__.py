"""Engines run a step on one or many ranks: plain PyTorch (with DDP), or DeepSpeed ZeRO."""
