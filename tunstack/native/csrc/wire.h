/* Fields of frames, and what coalesce.c and segment.c both know of IP headers. */
#ifndef TUNSTACK_WIRE_H
#define TUNSTACK_WIRE_H

#include "native.h"

#define TS_ETHERNET 14
#define TS_PROTOCOL_TCP 6
#define TS_PROTOCOL_UDP 17
#define TS_PROTOCOL_ICMPV6 58
#define TS_FIN 0x01u
#define TS_SYN 0x02u
#define TS_RST 0x04u
#define TS_PSH 0x08u
#define TS_ACK 0x10u
#define TS_CWR 0x80u

static inline uint32_t ts_get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static inline uint32_t ts_get32(const uint8_t *p)
{
    return ts_get16(p) << 16 | ts_get16(p + 2);
}

static inline void ts_put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void ts_put32(uint8_t *p, uint32_t value)
{
    ts_put16(p, value >> 16);
    ts_put16(p + 2, value);
}

/* The complement, as it stands in a header. */
static inline uint32_t ts_checksum(const uint8_t *data, size_t length, uint64_t initial)
{
    return ~(uint32_t)ts_ones_sum(data, length, initial) & 0xffff;
}

/* The folded sum of the pseudo-header of the IP header at `ip` (RFC 9293 3.1, RFC 8200 8.1). */
static inline uint16_t ts_pseudo(const uint8_t *ip, int version, uint32_t protocol, size_t length)
{
    uint64_t rest = (uint64_t)protocol + length;
    return version == 4 ? ts_ones_sum(ip + 12, 8, rest) : ts_ones_sum(ip + 8, 32, rest);
}

/* 4, 6, or 0 for what is neither or too short for a header. */
static inline int ts_ip_version(const uint8_t *frame, size_t length, int l2)
{
    size_t base = l2 ? TS_ETHERNET : 0;
    int version;
    uint32_t ethertype;

    if (length <= base)
        return 0;
    version = frame[base] >> 4;
    if (version == 4)
        ethertype = 0x0800;
    else if (version == 6)
        ethertype = 0x86dd;
    else
        return 0;
    if (length - base < (version == 4 ? 20u : 40u))
        return 0;
    if (l2 && ts_get16(frame + 12) != ethertype)
        return 0;
    return version;
}

/* Set the IP length from `length` (bytes from `ip` on) and complete the header. */
static inline void ts_fix_ip(uint8_t *ip, int version, size_t header, size_t length)
{
    if (version == 6) {
        ts_put16(ip + 4, (uint32_t)(length - 40));
        return;
    }
    ts_put16(ip + 2, (uint32_t)length);
    ts_put16(ip + 10, 0);
    ts_put16(ip + 10, ts_checksum(ip, header, 0));
}

#endif
