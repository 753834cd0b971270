/*
 * Sequence numbers and timestamp offsets of connections that are opened here (RFC 6528): those of tunstack.tcp.isn,
 * which is the twin. The hash is BLAKE2s (RFC 7693) with a key; what the key makes of it is kept.
 */
#include "fast_brief.h"
#include "wire.h"

#include <string.h>

#define BLOCK 64

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint8_t sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

static uint32_t rotate(uint32_t word, int by)
{
    return word >> by | word << (32 - by);
}

static void mix(uint32_t *v, int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    v[a] += v[b] + x;
    v[d] = rotate(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotate(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 7);
}

/* The block that ends `counted` bytes after the beginning; the last one if it is `last`. */
static void compress(uint32_t state[8], const uint8_t block[BLOCK], uint32_t counted, int last)
{
    uint32_t v[16], words[16];
    int round, i;

    for (i = 0; i < 16; i++)
        words[i] = (uint32_t)block[4 * i] | (uint32_t)block[4 * i + 1] << 8 | (uint32_t)block[4 * i + 2] << 16 |
                   (uint32_t)block[4 * i + 3] << 24;
    memcpy(v, state, 32);
    memcpy(v + 8, initial, 32);
    v[12] ^= counted;
    if (last)
        v[14] = ~v[14];
    for (round = 0; round < 10; round++) {
        const uint8_t *s = sigma[round];

        for (i = 0; i < 4; i++)
            mix(v, i, 4 + i, 8 + i, 12 + i, words[s[2 * i]], words[s[2 * i + 1]]);
        for (i = 0; i < 4; i++)
            mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[s[8 + 2 * i]],
                words[s[9 + 2 * i]]);
    }
    for (i = 0; i < 8; i++)
        state[i] ^= v[i] ^ v[8 + i];
}

/* `purpose`: the first bytes of the personalization, as a little-endian number. */
static void set_key(uint32_t state[8], const uint8_t *key, uint32_t length, uint32_t purpose)
{
    uint8_t block[BLOCK] = {0};

    memcpy(state, initial, sizeof initial);
    state[0] ^= 0x01010000 | length << 8 | 4; /* a digest of 4 bytes */
    state[6] ^= purpose;
    memcpy(block, key, length);
    compress(state, block, BLOCK, 0);
}

void ts_brief_set_secret(struct ts_fast *fast, const uint8_t *secret, uint32_t length)
{
    if (length > 32)
        length = 32;
    set_key(fast->briefs->isn_state, secret, length, 0x6e7369); /* "isn" */
    set_key(fast->briefs->stamp_state, secret, length, 0x7374); /* "ts" */
}

uint32_t ts_brief_hash(const struct ts_fast *fast, int which, int family, const uint8_t *addresses,
                       const uint8_t *ports)
{
    uint32_t state[8], size = family == 4 ? 4 : 16;
    uint8_t block[BLOCK] = {0};

    /* local address, remote address, local port, remote port */
    memcpy(block, addresses + size, size);
    memcpy(block + size, addresses, size);
    memcpy(block + 2 * size, ports + 2, 2);
    memcpy(block + 2 * size + 2, ports, 2);
    memcpy(state, which ? fast->briefs->stamp_state : fast->briefs->isn_state, sizeof state);
    compress(state, block, BLOCK + 2 * size + 4, 1);
    return (state[0] & 0xff) << 24 | (state[0] & 0xff00) << 8 | (state[0] >> 8 & 0xff00) | state[0] >> 24;
}
