"""What a finished run looks like: figures and reports."""
