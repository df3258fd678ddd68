"""What several built-in interceptors share: patterns over text in pieces, state per text, JSON-lines
files, URI spellings.

Imports only the documented plug-in API. Not part of it: an author's interceptor must not import this.
"""
