"""Pooled buffers: pools, leases, buffer scopes, JSON in pooled buffers, statistics and the report.

Imports nothing else of this project.
"""

from .buffers import BufferPool, Lease, PoolStatistics, is_exported
from .errors import LeaseReturned, PoolError, ScopeClosed
from .family import POOL_NAMES, Pools
from .jsonwork import PooledOutput, decode_json, encode_any_json, encode_json
from .leaks import LeakDetector, LeakLevel
from .report import report, run_reports
from .scope import BufferScope

__all__ = [
    "POOL_NAMES",
    "BufferPool",
    "BufferScope",
    "LeakDetector",
    "LeakLevel",
    "Lease",
    "LeaseReturned",
    "PoolError",
    "PoolStatistics",
    "PooledOutput",
    "Pools",
    "ScopeClosed",
    "decode_json",
    "encode_any_json",
    "encode_json",
    "is_exported",
    "report",
    "run_reports",
]
