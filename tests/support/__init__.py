"""What the tests share: scripted upstreams, a proxy in this process, raw clients."""
