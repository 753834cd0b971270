/* Packets behind a virtio-net header, and the wire frames that they are. */
#ifndef TUNSTACK_FAST_WIRE_H
#define TUNSTACK_FAST_WIRE_H

#include "fastpath.h"
#include "wire.h"

#include <errno.h>

#define TS_GSO_ECN 0x80u
#define TS_NEEDS_CHECKSUM 1 /* of the flags: the checksum is not complete */
#define TS_DATA_VALID 2     /* it is right */
#define TS_GSO_TCPV4 1u
#define TS_GSO_TCPV6 4u
#define TS_GSO_UDP_L4 5u
#define TS_MOST_HEADERS (14 + 60 + 60) /* Ethernet, IPv4 with options, TCP with options */
#define TS_MOST_FRAMES 2048            /* of one train: 64 KiB at the least MSS are 1,366 */

/* Where the checksum starts that is not complete, if there is one, and where it stands from there. */
static inline int ts_wire_partial(const uint8_t *vnet, uint16_t *start, uint16_t *offset)
{
    memcpy(start, vnet + 6, 2);
    memcpy(offset, vnet + 8, 2);
    return vnet[0] & TS_NEEDS_CHECKSUM;
}

/* Whether the checksum at `field` of the `length` bytes at `data` is right, or may be taken for right. */
static inline int ts_wire_verify(const struct ts_fast *fast, const uint8_t *data, uint32_t length, uint32_t field,
                                 const uint8_t *ip, int family, uint32_t protocol)
{
    uint32_t pseudo = ts_pseudo(ip, family, protocol, length);

    return ts_ones_sum(data, length, pseudo) == 0xffff || (fast->untold && ts_get16(data + field) == pseudo);
}

/*
 * Bytes of the packet in `views`, the first of which has the virtio-net header; 0 if there are none, more than
 * there can be, or a checksum outside of them.
 */
static inline uint32_t ts_wire_length(const struct iovec *views, int count)
{
    uint16_t start, offset;
    size_t length = 0;
    int i;

    for (i = 0; i < count; i++)
        length += views[i].iov_len;
    if (views->iov_len <= TS_FAST_VNET || length >= TS_FAST_FRAME)
        return 0;
    length -= TS_FAST_VNET;
    if (ts_wire_partial(views->iov_base, &start, &offset) && (uint32_t)start + offset + 2 > length)
        return 0;
    return (uint32_t)length;
}

/* The virtio-net header's type of train, one of GSO_* in segment.c; 0: it is none. */
static inline uint32_t ts_wire_train(const uint8_t *vnet)
{
    return vnet[1] & ~TS_GSO_ECN;
}

/* Room for what `ts_segment` makes of a train of `length` bytes; 0: it is none that is to be cut. */
static inline uint32_t ts_wire_room(uint32_t length, uint32_t gso_size, uint32_t gap)
{
    if (!gso_size || length / gso_size > TS_MOST_FRAMES)
        return 0;
    return length + (length / gso_size + 1) * (TS_MOST_HEADERS + gap);
}

/* A packet in one piece, as those take it who only read. */
static inline struct iovec ts_wire_view(const uint8_t *data, uint32_t length)
{
    struct iovec view;

    view.iov_base = (void *)(uintptr_t)data;
    view.iov_len = length;
    return view;
}

static inline void ts_wire_gather(uint8_t *to, const struct iovec *views, int count)
{
    int i;

    for (i = 0; i < count; i++) {
        memcpy(to, views[i].iov_base, views[i].iov_len);
        to += views[i].iov_len;
    }
}

/* Complete the checksum of `frame`, if `vnet` says that it is not; `ts_wire_length` has found it inside. */
static inline void ts_wire_complete(const uint8_t *vnet, uint8_t *frame, uint32_t length)
{
    enum { OFFSET_IN_UDP = 6 };
    uint16_t start, offset;
    uint32_t checksum;

    if (!ts_wire_partial(vnet, &start, &offset))
        return;
    checksum = ts_checksum(frame + start, length - start, 0);
    if (!checksum && offset == OFFSET_IN_UDP)
        checksum = 0xffff; /* RFC 768: zero means that there is none */
    ts_put16(frame + start + offset, checksum);
}

#endif
