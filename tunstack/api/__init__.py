"""The HTTP API of a running gateway, on a UNIX socket that only its user can open.

`control` is the socket, `acceptor` reads each request's head and decides who answers it, `app` is the
application (starlette), `bodies` what is sent to and fro, `client` asks. The libraries that this takes are
imported at the first request.
"""
