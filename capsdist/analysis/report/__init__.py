"""HTML pages of runs: report.html, table.html, interactive.html; start with README.md."""
