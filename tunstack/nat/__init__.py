"""The NAT: flows between the guest's side of the stack and sockets of the host."""
