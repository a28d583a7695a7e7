"""Commands that start processes: a worker, and the whole application."""
