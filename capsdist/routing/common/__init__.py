"""What routing algorithms share: checks, tiling, precision, autograd. It knows no algorithm."""
