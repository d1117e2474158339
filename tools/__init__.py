"""Scripts that make data files of the project; they are run by hand and compared by tests."""
