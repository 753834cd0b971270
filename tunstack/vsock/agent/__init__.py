"""The guest's end of a link: a TAP interface that is connected to a gateway elsewhere.

`netlink` sets the interface up, `interface` is the TAP with its addresses, `lease` keeps them by DHCP,
`wire` carries frames between the TAP and the link, `agent` connects, and connects again.
"""
