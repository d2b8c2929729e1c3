"""The terminal and the process: clean output, signals of the system, exit codes."""
