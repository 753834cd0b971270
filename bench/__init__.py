"""Measurements of tunstack beside its peers, on topologies that the measurement builds itself."""
