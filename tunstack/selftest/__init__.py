"""What this machine can do of what tunstack needs, tried for real, as a report for people."""
