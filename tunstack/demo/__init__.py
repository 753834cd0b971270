"""The embedded demonstration, `python -m tunstack.demo`: a real guest, stock tools, checked transfers."""
