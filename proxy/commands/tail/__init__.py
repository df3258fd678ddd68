"""`weirpool tail`: live streams in a terminal, from `/inspect/stream`.

`run` connects, `lines` writes for people, `tape` for `replay`.
"""
