"""The command line: arguments and drawing, no logic."""
