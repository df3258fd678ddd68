"""The Lua scripts of the store, and their digests.

All times are the server's. A script reads and changes only the keys it is given, so it is atomic
and works with ACLs on key patterns. Errors of a script change nothing: each checks before it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

__all__ = [
    "ADD",
    "APPEND",
    "COUNT",
    "PROBE",
    "RESERVE",
    "RESTORE_BUCKETS",
    "RESTORE_RESERVED",
    "RESTORE_WINDOWS",
    "SCRIPTS",
    "SETTLE",
    "TAKE",
    "Call",
    "Script",
]


class Script:
    """A script, called by its digest."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        # S324: the server names a script by its SHA-1.
        self.sha = sha1(self.text).hexdigest().encode()  # noqa: S324


Call = tuple[Script, Sequence[str], Sequence[Any]]
"""A script, its keys and its arguments."""

TAKE = Script("""
-- KEYS: bucket. ARGV: microseconds a token, burst, cost.
-- GCRA: the value is when the bucket will be full. Returns {allowed, wait, until full}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local wait = full + (cost - burst) * interval - now
if wait > 0 then
    return {0, math.ceil(wait), math.ceil(full - now)}
end
full = full + cost * interval
-- Quarters are exact in a double of this size, so sums have no rounding errors.
redis.call('SET', KEYS[1], string.format('%.2f', full), 'PX', math.ceil((full - now) / 1000) + 1)
return {1, 0, math.ceil(full - now)}
""")

RESTORE_BUCKETS = Script("""
-- KEYS: buckets. ARGV: least microseconds until each is full.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for at, key in ipairs(KEYS) do
    local left = tonumber(ARGV[at])
    if now + left > tonumber(redis.call('GET', key) or 0) then
        local full = string.format('%.2f', now + left)
        redis.call('SET', key, full, 'PX', math.ceil(left / 1000) + 1)
    end
end
return 1
""")

_WINDOWS = """
-- A window is a hash: n number, c used, p previous, r:OWNER reserved by an owner.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function load(key, number)
    local window = {number = -1, used = 0, previous = 0, owners = {}}
    local fields = redis.call('HGETALL', key)
    for at = 1, #fields, 2 do
        local name, value = fields[at], tonumber(fields[at + 1])
        if name == 'n' then window.number = value
        elseif name == 'c' then window.used = value
        elseif name == 'p' then window.previous = value
        else window.owners[string.sub(name, 3)] = value end
    end
    if number > window.number then
        window.previous = number == window.number + 1 and window.used or 0
        window.number, window.used, window.owners, window.rolled = number, 0, {}, true
    end
    return window
end
local function store(key, window, length)
    if window.rolled then redis.call('DEL', key) end
    redis.call('HSET', key, 'n', window.number, 'c', window.used, 'p', window.previous)
    redis.call('PEXPIRE', key, 2 * length)
end
"""

RESERVE = Script(
    _WINDOWS
    + """
-- KEYS: owners, the owner's reservations, windows. ARGV: owner, id, amount, spend, force, lease;
-- for each window: limit, length in ms, sliding, number or -1.
-- Returns {refused or 0}, then for each window: number, used, reserved, ms until its end.
local owner, id, amount = ARGV[1], ARGV[2], tonumber(ARGV[3])
local spend, force, lease = ARGV[4] == '1', ARGV[5] == '1', tonumber(ARGV[6])
local windows, result = {}, {0}
for at = 1, #KEYS - 2 do
    local key, base = KEYS[at + 2], 6 + (at - 1) * 4
    local limit, length = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
    local number, left = tonumber(ARGV[base + 4]), length
    if number < 0 then
        number = math.floor(now / length)
        left = length - now % length
    end
    local window, reserved = load(key, number), 0
    for name, value in pairs(window.owners) do
        local ends = redis.call('ZSCORE', KEYS[1], name)
        if ends and tonumber(ends) > now then
            reserved = reserved + value
        elseif name ~= owner then
            redis.call('HDEL', key, 'r:' .. name)
        else
            reserved = reserved + value
        end
    end
    local used = window.used
    if ARGV[base + 3] == '1' then used = used + math.ceil(window.previous * left / length) end
    if result[1] == 0 and used + reserved + amount > limit then result[1] = at end
    window.length = length
    windows[at] = window
    for _, value in ipairs({window.number, used, reserved, left}) do
        result[#result + 1] = value
    end
end
if amount == 0 or (result[1] ~= 0 and not force) then return result end
for at, window in ipairs(windows) do
    local key = KEYS[at + 2]
    if spend then window.used = window.used + amount end
    store(key, window, window.length)
    if not spend then redis.call('HINCRBY', key, 'r:' .. owner, amount) end
    local place = 2 + (at - 1) * 4 + (spend and 1 or 2)
    result[place] = result[place] + amount
end
if not spend then
    redis.call('ZADD', KEYS[1], 'GT', now + lease, owner)
    local record = {amount}
    for _, window in ipairs(windows) do record[#record + 1] = window.number end
    redis.call('HSET', KEYS[2], id, table.concat(record, ' '))
    redis.call('PEXPIRE', KEYS[2], 86400000)
end
return result
"""
)

RESTORE_WINDOWS = Script(
    _WINDOWS
    + """
-- KEYS: windows. ARGV: for each: number, length in ms, least use.
for at, key in ipairs(KEYS) do
    local number, used = tonumber(ARGV[at * 3 - 2]), tonumber(ARGV[at * 3])
    local window = load(key, number)
    if window.number == number and window.used < used then
        window.used = used
        store(key, window, tonumber(ARGV[at * 3 - 1]))
    end
end
return 1
"""
)

RESTORE_RESERVED = Script(
    _WINDOWS
    + """
-- KEYS: the owner's reservations, windows. ARGV: owner; for each reservation: id, amount, how many
-- windows, and for each of them: number, length in ms. The mark '' shows that nothing was lost: what
-- is not there has been settled.
if redis.call('HEXISTS', KEYS[1], '') == 1 then return 1 end
redis.call('HSET', KEYS[1], '', '0')
local key, at = 2, 2
while at <= #ARGV do
    local id, amount, windows = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
    local record = {amount}
    at = at + 3
    for _ = 1, windows do
        local number = tonumber(ARGV[at])
        local window = load(KEYS[key], number)
        if window.number == number then
            store(KEYS[key], window, tonumber(ARGV[at + 1]))
            redis.call('HINCRBY', KEYS[key], 'r:' .. ARGV[1], amount)
        end
        record[#record + 1] = ARGV[at]
        key, at = key + 1, at + 2
    end
    redis.call('HSET', KEYS[1], id, table.concat(record, ' '))
end
redis.call('PEXPIRE', KEYS[1], 86400000)
return 1
"""
)

_COUNT = """
-- Counts in the window that an amount belongs to, although a later one may have begun.
local function count(key, number, length, used, owner, reserved)
    local window = load(key, number)
    if window.number == number then window.used = window.used + used
    elseif window.number == number + 1 then window.previous = window.previous + used
    else return end
    store(key, window, length)
    if window.number == number and reserved > 0 and window.owners[owner] then
        local left = window.owners[owner] - reserved
        if left > 0 then redis.call('HSET', key, 'r:' .. owner, left)
        else redis.call('HDEL', key, 'r:' .. owner) end
    end
end
"""

SETTLE = Script(
    _WINDOWS
    + _COUNT
    + """
-- KEYS: the owner's reservations, windows. ARGV: owner, id, amount, the length of each window.
-- Returns 1, or 0 if it was settled before, or never made.
local record = redis.call('HGET', KEYS[1], ARGV[2])
if not record then return 0 end
redis.call('HDEL', KEYS[1], ARGV[2])
local numbers = {}
for number in string.gmatch(record, '%S+') do numbers[#numbers + 1] = tonumber(number) end
for at = 1, #KEYS - 1 do
    count(KEYS[at + 1], numbers[at + 1], tonumber(ARGV[at + 3]), tonumber(ARGV[3]),
        ARGV[1], numbers[1])
end
return 1
"""
)

ADD = Script(
    _WINDOWS
    + _COUNT
    + """
-- KEYS: a mark, windows. ARGV: amount; for each window: number, length. Once for each mark.
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', 3600000) then return 0 end
for at = 1, #KEYS - 1 do
    local base = 1 + (at - 1) * 2
    count(KEYS[at + 1], tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[1]), '', 0)
end
return 1
"""
)

COUNT = Script("""
-- KEYS: a mark, counters. ARGV: ms to keep them; for each counter: name, amount. Once a mark.
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', 3600000) then return 0 end
for at = 2, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
""")

APPEND = Script("""
-- KEYS: log. ARGV: channel, epoch, first seq, ms to keep it, most entries, entries.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local epoch, seq = tonumber(ARGV[2]), tonumber(ARGV[3])
if last[1] then
    local had, at = string.match(last[1][1], '(%d+)-(%d+)')
    had, at = tonumber(had), tonumber(at)
    if epoch < had or (epoch == had and seq <= at) then return 0 end
end
local id
for at = 6, #ARGV do
    id = ARGV[2] .. '-' .. string.format('%d', seq + at - 6)
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], id, 'd', ARGV[at])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PUBLISH', ARGV[1], id)
return 1
""")

PROBE = Script("""
-- KEYS: probe, owners, the owner's reservations. ARGV: owner, lease in ms.
-- Shows that the server can write, and renews the lease of the owner's reservations.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], '1', 'PX', 60000)
redis.call('ZADD', KEYS[2], 'GT', now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 86400000)
redis.call('PEXPIRE', KEYS[2], 172800000)
redis.call('PEXPIRE', KEYS[3], 86400000)
return now
""")

SCRIPTS = (
    *(TAKE, RESTORE_BUCKETS, RESERVE, RESTORE_WINDOWS, RESTORE_RESERVED, SETTLE),
    *(ADD, COUNT, APPEND, PROBE),
)
