/*
 * The internet checksum (RFC 1071). The sum does not depend on the byte order of the words, but for a swap
 * of the result, and words may be added in pairs: 32-bit words in the machine's order go
 * into 64-bit accumulators without a carry, which compilers vectorise.
 */
#include <string.h>

#include "native.h"

#define LANES 8

static uint64_t fold(uint64_t sum)
{
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffu) + (sum >> 16);
    sum = (sum & 0xffffu) + (sum >> 16);
    return (sum & 0xffffu) + (sum >> 16);
}

uint16_t ts_ones_sum(const uint8_t *data, size_t length, uint64_t initial)
{
    const uint16_t probe = 1;
    uint64_t lanes[LANES] = {0};
    uint64_t sum = 0;
    uint32_t word;
    size_t i;

    while (length >= LANES * 4) {
        uint32_t words[LANES];
        memcpy(words, data, sizeof words);
        for (i = 0; i < LANES; i++)
            lanes[i] += words[i];
        data += LANES * 4;
        length -= LANES * 4;
    }
    for (i = 0; i < LANES; i++)
        sum += lanes[i];
    while (length >= 4) {
        memcpy(&word, data, 4);
        sum += word;
        data += 4;
        length -= 4;
    }
    if (length) {
        word = 0;
        memcpy(&word, data, length); /* the same bytes are zero in either byte order */
        sum += word;
    }
    sum = fold(sum);
    if (*(const uint8_t *)&probe) /* little-endian */
        sum = (sum >> 8 | sum << 8) & 0xffff;
    return (uint16_t)fold(sum + fold(initial));
}
