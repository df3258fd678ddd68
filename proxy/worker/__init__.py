"""What the exchanges of one process share: configuration generations, routes, limits, metrics,
logs, the other workers.

Imports `relay`, `dialects` and everything below them. It knows no exchange: what it needs of one is
the protocol `LiveExchange`.
"""
