"""One request with its stream: its phases, what it reads from the client, what it asks the
upstream, what it sends back.

Imports `worker` and everything below it. Only `server` imports this.
"""
