"""What a person types: `weirpool serve`, `check`, `demo`, `bench`, `new-interceptor`, `new-key`,
`schema`.

`cli` parses the command line and maps errors to exit statuses; each other module is one command. A
command may import anything in `proxy`; nothing imports a command.
"""
