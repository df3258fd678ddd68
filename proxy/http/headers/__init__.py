"""Header fields on their way through the proxy, sans I/O. Names are lower-case bytes.

- `fields`: a list of fields and its grammar;
- `hop`: what belongs to one connection and is removed from a message as it arrives;
- `forwarded`: what proxies in front of this one report about the client;
- `request_id`: the id of a request, for logs;
- `to_upstream`: what is removed from a request and added to it;
- `to_client`: what is removed from a response and added to it.

Rules: RFC 9110, section 7.6 (message forwarding), RFC 7239 (Forwarded). Each module imports only
those above it.
"""

from .fields import HeaderList, are_fields, find_header
from .forwarded import (
    TrustedProxies,
    client_of,
    client_origin,
    network_of,
    one_spelling,
    outer_prefix,
)
from .hop import end_to_end, received_request, refuse_two_lengths, without_doubles
from .request_id import new_request_id, take_request_id, upstream_id, with_request_id
from .to_client import check_response_headers, response_headers, with_length_of, without_stale
from .to_upstream import (
    HeaderSettings,
    Via,
    forwards_left,
    new_pseudonym,
    one_forward_less,
    refuse_trace,
    request_headers,
)

__all__ = [
    "HeaderList",
    "HeaderSettings",
    "TrustedProxies",
    "Via",
    "are_fields",
    "check_response_headers",
    "client_of",
    "client_origin",
    "end_to_end",
    "find_header",
    "forwards_left",
    "network_of",
    "new_pseudonym",
    "new_request_id",
    "one_forward_less",
    "one_spelling",
    "outer_prefix",
    "received_request",
    "refuse_trace",
    "refuse_two_lengths",
    "request_headers",
    "response_headers",
    "take_request_id",
    "upstream_id",
    "with_length_of",
    "with_request_id",
    "without_doubles",
    "without_stale",
]
