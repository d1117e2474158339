"""Merging, training and evaluation of pools; uses pools and files, never the database."""
