"""The commands: `weirpool serve`, `check`, `schema`, `demo`, `bench`, `new-interceptor`, `new-key`.

`cli` parses the command line and maps errors to exit statuses; each other module is one command. A
command may import anything in `proxy`; nothing imports a command.
"""
