"""Shared by the built-in interceptors: patterns over text in pieces, state per text, JSON-lines
files, URI spellings.

Not part of the plug-in API.
"""
