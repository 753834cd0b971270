"""Where a flow can end beside TCP and UDP: AF_VSOCK, Hyper-V sockets, hybrid vsock, UNIX, and proxies.

`addresses` says where something is, `sockets` connects and listens there (trio), `handshakes` are what is
said before a stream is one's own (hybrid vsock, SOCKS5, HTTP CONNECT), `dialers` do both for flows of a NAT,
`routes` is what the command line says of them, `upgrade` is how a link of frames begins, and `agent` is the
other end of it within a guest.
"""
