"""The command line: one file per command; `app.py` finds the command and alone turns errors into exit codes."""
