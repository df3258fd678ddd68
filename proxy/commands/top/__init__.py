"""`weirpool top`: the live state of a proxy in a terminal.

`state` is what `/status` sends, `client` gets it, `view` turns it into text and tables, `app` shows
them with Textual, and `run` is the command. Only `app` imports Textual, which needs asyncio: it runs
in a process of its own and never in the proxy.
"""
