"""What comes in from outside and goes out again: small inputs that were once misread.

A file for each row of the table in ../shared/cases, named by its number: the right value of the row, and
siblings of our own beside it.
"""
