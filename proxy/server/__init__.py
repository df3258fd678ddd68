"""A server process: the app, its pages, listening sockets, signals, drain, reload, the supervisor.

Imports `exchange` and everything below it. Only `commands` and the package itself import it.
"""
