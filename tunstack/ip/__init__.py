"""IP, ICMP and UDP, without a clock or a socket."""
