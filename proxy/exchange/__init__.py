"""One exchange: a client's request and its response.

`exchange` opens and ends it, `phases.serve` has its phases in order. What the phases share stands
in `context`; `request`, `request_body` and `client_response` are the client's side, `upstream_call`
the upstream's. Imports `worker` and every package below it; only `server` imports this package.
"""
