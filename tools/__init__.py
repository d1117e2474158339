"""What the project is made and measured with: data files, pages, benchmarks, long checks. Not installed.

Each is run by hand as `python -m tools.NAME`; tests compare what they wrote. Benchmarks, the fuzzer and the
kills build their adapters with what the tests build theirs.
"""
