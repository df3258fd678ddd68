"""`weirpool bench`: measure the proxy on this machine.

`tests/bench/compare.py` uses the same load and scenarios to compare with other proxies. Nothing
outside this package imports it except the command line.
"""
