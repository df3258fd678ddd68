"""What each dialect says of itself, one file each: error bodies and events, the end of a stream,
its sessions.

Imports `upstream`, `http` and the interceptors' readers. `relay`, `worker` and `exchange` ask a
dialect; none compares its name.
"""
