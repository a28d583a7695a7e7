"""Measurements: each module measures named parts into rows and summarises them, purely, from the rows."""
