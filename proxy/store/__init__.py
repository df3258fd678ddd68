"""Shared state: the engines of `interceptors.Store` that workers and machines share.

`ValkeyEngine` is the store on a server, `Link` its connection; `interceptors.memory` has the one in
memory. This package knows neither the configuration nor exchanges.
"""

from .address import Address, address_of, address_problem
from .link import KINDS
from .valkey import ValkeyEngine

__all__ = ["KINDS", "Address", "ValkeyEngine", "address_of", "address_problem"]
