/*
 * The C side of tunstack.native: checksums, GRO and GSO at the level of bytes.
 *
 * tunstack/native/pure.py is the reference; it states the theory of operation and the two
 * must agree on every input. Nothing here keeps state between calls, calls back into
 * Python, or allocates memory. Multi-byte fields are read and written bytewise: no
 * alignment is assumed.
 */
#ifndef TUNSTACK_NATIVE_H
#define TUNSTACK_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* Trains open at once within one batch: limits.COALESCE_FLOWS. */
#define TS_COALESCE_FLOWS 64

/* What ts_coalesce is told of a packet. */
#define TS_TRUSTED 1 /* its TCP checksum need not be verified */
#define TS_OPAQUE 2  /* is a train itself: never merged */

/* What ts_coalesce says of a packet: a row of TS_ROW numbers. */
#define TS_ROW 8
struct ts_row {
    int32_t next;           /* index of the next member of its train, 0 if there is none */
    int32_t length;         /* first of a train: bytes of the merged frame; -1: absorbed; 0: untouched */
    int32_t offset;         /* first of a train: where the merged frame starts in the output */
    int32_t gso_size;       /* first of a train: payload bytes of a wire packet */
    int32_t version;        /* 4 or 6 */
    int32_t payload;        /* where its payload starts in the input frame, and ... */
    int32_t payload_length; /* ... its bytes */
    int32_t push;           /* first of a train: the last member had PSH */
};

/* Lengths below 2^34. The folded sum of big-endian words, not inverted; 0 only if all is 0. */
uint16_t ts_ones_sum(const uint8_t *data, size_t length, uint64_t initial);

/*
 * Merge `count` frames. `rows` has count * TS_ROW numbers, all 0 on entry; merged frames go to `out`. Returns
 * the number of absorbed packets, or -1 if `out` is too small (the sum of all lengths always suffices).
 */
int64_t ts_coalesce(const uint8_t *const *frames, const uint32_t *lengths, const uint8_t *flags,
                    size_t count, int l2, uint32_t limit, uint8_t *out, size_t capacity, int32_t *rows);

/*
 * Cut a train into wire frames, written one behind the other with `gap` bytes in front of
 * each that are left as they are. Each is header + gso_size bytes, the last one less or
 * equal. Returns header << 32 | number of frames, or a negative TS_BAD_*.
 */
#define TS_BAD_GSO_TYPE -1
#define TS_BAD_IP_HEADER -2
#define TS_BAD_UDP_HEADER -3
#define TS_BAD_TCP_HEADER -4
#define TS_BAD_GSO_SIZE -5
#define TS_NO_ROOM -6
int64_t ts_segment(const uint8_t *frame, size_t length, int l2, uint32_t gso_size, uint32_t gso_type,
                   size_t gap, uint8_t *out, size_t capacity);

#endif
