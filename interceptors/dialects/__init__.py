"""What flows, as messages instead of events: one module a dialect, sans I/O, each usable alone. Imports nothing by itself."""
