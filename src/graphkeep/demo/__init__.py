"""What `python -m graphkeep demo` runs: a graph, the process that runs it, and the story told of it."""
