"""Tests of IP, ICMP and UDP."""
