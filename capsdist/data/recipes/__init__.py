"""Splits whose images are pairs of the images of another split, overlaid when they are read."""
