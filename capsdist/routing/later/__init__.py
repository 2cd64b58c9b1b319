"""Routing algorithms that came after dynamic and EM routing, each a file: reference and lean form."""
