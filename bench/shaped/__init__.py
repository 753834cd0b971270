"""`python -m bench shaping`: whether a link does what was ordered, for a real Linux guest in real time.

`probe` sends and receives in the guest and beside it, `link` is a running gateway whose shaping is changed by
its control socket, `lines` are the measurements, `figures` the statistics, `report` what comes of it.
"""
