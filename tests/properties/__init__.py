"""Properties of whatever happens to files: damaged at random, read by the code that reads them in a run."""
