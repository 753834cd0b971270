"""System calls for packetdrill scripts: POSIX sockets, as Linux has them, over a `Stack` in virtual time.

`System` is one process on one host. `System.call` starts a call, which is done at once or when the stack has
reported enough; nothing here reads a clock, blocks or does I/O.
"""

from tunstack.testing.packetdrill.system.call import Call, Unsupported
from tunstack.testing.packetdrill.system.system import System

__all__ = ["Call", "System", "Unsupported"]
