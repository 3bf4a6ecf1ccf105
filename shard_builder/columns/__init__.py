"""Kinds of columns that need no tower, a file each; `launch/columns.py` has the table of all kinds."""
