/* What the fuzz targets share: checks, an input that is read as bytes, and frames that are nearly valid. */
#ifndef TUNSTACK_FUZZ_H
#define TUNSTACK_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the process, as a sanitizer does. */
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* An input; behind its end everything is 0. */
struct input {
    const uint8_t *data;
    size_t left;
};

static inline uint32_t take8(struct input *input)
{
    if (!input->left)
        return 0;
    input->left--;
    return *input->data++;
}

static inline uint32_t take16(struct input *input)
{
    uint32_t high = take8(input);

    return high << 8 | take8(input);
}

static inline uint32_t take32(struct input *input)
{
    uint32_t high = take16(input);

    return high << 16 | take16(input);
}

#define PICK(input, table) ((table)[take8(input) % (sizeof(table) / sizeof *(table))])

/* Memory of exactly `size` bytes, so that a sanitizer sees what lies outside of it. */
static inline uint8_t *exactly(size_t size)
{
    uint8_t *data = malloc(size ? size : 1);

    CHECK(data);
    return size ? data : data + 1; /* to be freed by `release` */
}

static inline void release(uint8_t *data, size_t size)
{
    free(size ? data : data - 1);
}

/* The sum as RFC 1071 section 1 tells it: word after word, the carry added at once. */
static inline uint32_t plain_sum(const uint8_t *data, size_t length, uint32_t sum)
{
    size_t i;

    for (i = 0; i < length; i++) {
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* Of the pseudo-header of the packet at `ip`, for `length` bytes of layer 4. */
static inline uint32_t plain_pseudo(const uint8_t *ip, uint32_t protocol, size_t length)
{
    uint32_t sum = (uint32_t)length + protocol;

    sum = (sum & 0xffff) + (sum >> 16);
    return ip[0] >> 4 == 4 ? plain_sum(ip + 12, 8, sum) : plain_sum(ip + 8, 32, sum);
}

/* What stands at each sequence number of every stream: it repeats after 64 KiB, and a shift by less is seen. */
static inline const uint8_t *content(uint32_t seq)
{
    static uint8_t bytes[3 * 65536];
    uint32_t i;

    if (!bytes[0])
        for (i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(1 + (i & 0xffff) % 251);
    return bytes + (seq & 0xffff);
}

/* For sizes up to 128 KiB. */
static inline void fill_content(uint8_t *at, uint32_t seq, uint32_t size)
{
    memcpy(at, content(seq), size);
}

static inline int is_content(const uint8_t *data, uint32_t seq, uint32_t size)
{
    uint32_t done, part;

    for (done = 0; done < size; done += part) {
        part = size - done < 65536 ? size - done : 65536;
        if (memcmp(data + done, content(seq + done), part))
            return 0;
    }
    return 1;
}

static const uint8_t gateway_mac[6] = {2, 0, 0, 0, 0, 1}, guest_mac[6] = {2, 0, 0, 0, 0, 2};

/* A TCP or UDP frame of the guest with number `id`. */
struct shape {
    int l2, family, udp;
    uint32_t id, seq, ack, window, stamp, echo, size;
    uint8_t flags, ttl, mark;
};

#define LARGEST_HEADERS (14 + 40 + 32)

static inline size_t headers_of(const struct shape *shape)
{
    return (shape->l2 ? 14u : 0u) + (shape->family == 4 ? 20u : 40u) + (shape->udp ? 8u : 32u);
}

/* The addresses and ports as they stand in a frame from the guest: 12 or 36 bytes. */
static inline size_t put_key(uint8_t *at, int family, uint32_t id)
{
    size_t size = family == 4 ? 4 : 16;

    memset(at, 0, 2 * size + 4);
    at[0] = at[size] = family == 4 ? 10 : 0xfd;
    at[size - 1] = 100;
    at[2 * size - 1] = (uint8_t)id;
    ts_put16(at + 2 * size, 40000 + id);
    ts_put16(at + 2 * size + 2, 80);
    return 2 * size + 4;
}

/* Headers without checksums; returns their length. */
static inline size_t put_headers(uint8_t *frame, const struct shape *shape)
{
    size_t base = shape->l2 ? 14 : 0, l4 = base + (shape->family == 4 ? 20u : 40u);
    size_t l4_length = (shape->udp ? 8u : 32u) + shape->size;
    uint8_t *ip = frame + base, *tcp = frame + l4;

    memset(frame, 0, LARGEST_HEADERS);
    if (shape->l2) {
        memcpy(frame, gateway_mac, 6);
        memcpy(frame + 6, guest_mac, 6);
        ts_put16(frame + 12, shape->family == 4 ? 0x0800 : 0x86dd);
    }
    if (shape->family == 4) {
        ip[0] = 0x45;
        ip[1] = shape->mark;
        ts_put16(ip + 2, (uint32_t)(20 + l4_length));
        ip[6] = 0x40;
        ip[8] = shape->ttl;
        ip[9] = shape->udp ? TS_PROTOCOL_UDP : TS_PROTOCOL_TCP;
        put_key(ip + 12, 4, shape->id);
    } else {
        ip[0] = 0x60;
        ip[1] = (uint8_t)(shape->mark << 4);
        ts_put16(ip + 4, (uint32_t)l4_length);
        ip[6] = shape->udp ? TS_PROTOCOL_UDP : TS_PROTOCOL_TCP;
        ip[7] = shape->ttl;
        put_key(ip + 8, 6, shape->id);
    }
    if (shape->udp) {
        ts_put16(tcp + 4, (uint32_t)l4_length);
        return l4 + 8;
    }
    ts_put32(tcp + 4, shape->seq);
    ts_put32(tcp + 8, shape->ack);
    tcp[12] = 0x80;
    tcp[13] = shape->flags;
    ts_put16(tcp + 14, shape->window);
    ts_put32(tcp + 20, 0x0101080a);
    ts_put32(tcp + 24, shape->stamp);
    ts_put32(tcp + 28, shape->echo);
    return l4 + 32;
}

/* The checksums of `put_headers`' frame of `length` bytes, whatever has been patched since. */
static inline void put_checksums(uint8_t *frame, size_t length, const struct shape *shape)
{
    size_t base = shape->l2 ? 14 : 0, l4 = base + (shape->family == 4 ? 20u : 40u);
    uint8_t *ip = frame + base, *at = frame + l4 + (shape->udp ? 6 : 16);

    if (shape->family == 4) {
        ts_put16(ip + 10, 0);
        ts_put16(ip + 10, ~plain_sum(ip, 20, 0));
    }
    ts_put16(at, 0);
    ts_put16(at, ~plain_sum(frame + l4, length - l4,
                            plain_pseudo(ip, shape->udp ? TS_PROTOCOL_UDP : TS_PROTOCOL_TCP, length - l4)));
}

/* Up to 3 bytes of the first `length` are overwritten as the input says. */
static inline void patch(struct input *input, uint8_t *data, size_t length)
{
    uint32_t count = take8(input) & 3;

    while (count--) {
        uint32_t at = take8(input), value = take8(input);

        if (length)
            data[at % length] = (uint8_t)value;
    }
}

#endif
