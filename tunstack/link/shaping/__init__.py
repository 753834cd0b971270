"""A shaped link: delay, loss, rate, reordering and duplication of wire-size packets, sans-IO and seeded.

`spec` reads and prints the words in which shaping is ordered, `stage` is what every stage is, `pipeline` puts
stages in a row, and `shaper` stands between a device and the stack.
"""
