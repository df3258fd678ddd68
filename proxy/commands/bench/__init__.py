"""`weirpool bench`: what the proxy costs on this machine. A load that plays both ends, and the
scenarios.

`tests/bench/compare.py` uses the same load and scenarios to compare with other proxies.
"""
