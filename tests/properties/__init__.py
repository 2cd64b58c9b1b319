"""Properties that hold for whatever happens to files: damaged in random ways, read by what reads them in truth."""
