"""A module of a user with loggers, as text: tests write it to a folder outside the repository."""

LOGGER_CLASSES = """
import json
from pathlib import Path
from capsdist.runs.loggers import Logger

class Lines(Logger):
    def __init__(self, run):
        self.path = run.folder / "own.txt"

    def log(self, row):
        with self.path.open("a") as file:
            print(row["kind"], row["step"], file=file)

class Failing(Logger):
    method = "log"

    def __init__(self, run):
        self.fail("init")

    def fail(self, method):
        if method == self.method:
            raise OSError(f"no {method}\\ntoday")

    def log(self, row):
        self.fail("log")

    def image(self, name, pixels, step):
        self.fail("image")

    def close(self):
        self.fail("close")

class Init(Failing): method = "init"
class Image(Failing): method = "image"
class Close(Failing): method = "close"

class Least(Logger):
    def log(self, row): pass

class NoLogger:
    def log(self, row): pass

NUMBER = 3
"""
"""What each of them does: writes lines; raises in one method; defines the least; is none."""
