"""The figures, tables and theorems, a few to a file."""
