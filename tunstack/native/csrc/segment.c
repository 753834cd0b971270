/* GSO. pure.py has the same functions under the same names. */
#include <string.h>

#include "wire.h"

enum gso_type { GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5 };

struct layout {
    size_t base, l4, payload; /* offsets: IP, layer 4, data */
    int version;
    uint32_t protocol;
};

/* 0, or TS_BAD_*. What passes has all its headers within `length`, and an IP packet of at most 40 + 65535 bytes. */
static int train_layout(const uint8_t *frame, size_t length, int l2, uint32_t gso_type, struct layout *layout)
{
    size_t base = l2 ? TS_ETHERNET : 0;
    int version = ts_ip_version(frame, length, l2);
    const uint8_t *ip = frame + base;
    uint32_t protocol = gso_type == GSO_UDP_L4 ? TS_PROTOCOL_UDP : TS_PROTOCOL_TCP;
    size_t l4, payload, end;

    if (!version || !((gso_type == GSO_TCPV4 && version == 4) || (gso_type == GSO_TCPV6 && version == 6) ||
                      gso_type == GSO_UDP_L4))
        return TS_BAD_GSO_TYPE;
    if (version == 4) {
        l4 = base + (size_t)(ip[0] & 0x0f) * 4;
        end = base + ts_get16(ip + 2);
        if (l4 < base + 20 || ts_get16(ip + 6) & 0x3fff || ip[9] != protocol)
            return TS_BAD_IP_HEADER;
    } else {
        l4 = base + 40;
        end = l4 + ts_get16(ip + 4);
        if (ip[6] != protocol)
            return TS_BAD_IP_HEADER;
    }
    if (end != length)
        return TS_BAD_IP_HEADER;
    if (protocol == TS_PROTOCOL_UDP) {
        if (length < l4 + 8 || ts_get16(frame + l4 + 4) != length - l4)
            return TS_BAD_UDP_HEADER;
        payload = l4 + 8;
    } else {
        if (length < l4 + 20)
            return TS_BAD_TCP_HEADER;
        payload = l4 + (size_t)(frame[l4 + 12] >> 4) * 4;
        if (payload < l4 + 20 || payload > length)
            return TS_BAD_TCP_HEADER;
    }
    layout->base = base;
    layout->l4 = l4;
    layout->payload = payload;
    layout->version = version;
    layout->protocol = protocol;
    return 0;
}

static void fix_udp(uint8_t *udp, size_t length, uint16_t pseudo)
{
    uint32_t checksum;

    ts_put16(udp + 4, (uint32_t)length);
    ts_put16(udp + 6, 0);
    checksum = ts_checksum(udp, length, pseudo);
    ts_put16(udp + 6, checksum ? checksum : 0xffff); /* RFC 768: zero means that there is none */
}

static void fix_tcp(uint8_t *tcp, size_t length, uint16_t pseudo, uint32_t advance, int first, int last)
{
    ts_put32(tcp + 4, ts_get32(tcp + 4) + advance);
    if (!first)
        tcp[13] &= (uint8_t)~TS_CWR;
    if (!last)
        tcp[13] &= (uint8_t)~(TS_FIN | TS_PSH);
    ts_put16(tcp + 16, 0);
    ts_put16(tcp + 16, ts_checksum(tcp, length, pseudo));
}

int64_t ts_segment(const uint8_t *frame, size_t length, int l2, uint32_t gso_size, uint32_t gso_type,
                   size_t gap, uint8_t *out, size_t capacity)
{
    struct layout at;
    size_t data, count, i, start, chunk, l4_length;
    uint8_t *ip, *l4;
    uint16_t pseudo;
    int bad;

    if (gso_size == 0 || gso_size > 0xffff)
        return TS_BAD_GSO_SIZE;
    bad = train_layout(frame, length, l2, gso_type, &at);
    if (bad)
        return bad;
    data = length - at.payload;
    count = data ? (data + gso_size - 1) / gso_size : 1;
    if (count * (gap + at.payload) + data > capacity)
        return TS_NO_ROOM;
    for (i = 0; i < count; i++) {
        start = i * gso_size;
        chunk = data - start < gso_size ? data - start : gso_size;
        l4_length = at.payload - at.l4 + chunk;
        out += gap;
        memcpy(out, frame, at.payload);
        memcpy(out + at.payload, frame + at.payload + start, chunk);
        ip = out + at.base;
        l4 = out + at.l4;
        if (at.version == 4)
            ts_put16(ip + 4, ts_get16(ip + 4) + (uint32_t)i);
        ts_fix_ip(ip, at.version, at.l4 - at.base, at.payload - at.base + chunk);
        pseudo = ts_pseudo(ip, at.version, at.protocol, l4_length);
        if (at.protocol == TS_PROTOCOL_UDP)
            fix_udp(l4, l4_length, pseudo);
        else
            fix_tcp(l4, l4_length, pseudo, (uint32_t)start, i == 0, i == count - 1);
        out += at.payload + chunk;
    }
    return (int64_t)at.payload << 32 | (int64_t)count;
}
