"""The lecture's claims about capsule networks as experiments against a CNN of as many parameters."""
