/*
 * A stream socket that carries frames behind their lengths, as a device with all offloads: what the rest of the
 * fast path reads from it and writes to it looks as it does at a TAP, virtio-net header first.
 *
 * Theory of operation. Reading: one recv fills what is free of one buffer; each read copies the next whole frame
 * out of it, with a virtio-net header that promises nothing. Frames may be left when the descriptor is no longer
 * readable: `ts_stream_has_frame` tells. A length that no frame can have is skipped and counted, as
 * `tunstack.link.framings` does. Writing: trains are cut, checksums completed, and the frames collected behind
 * their lengths until `ts_stream_flush` sends them in one go.
 *
 * Bounds: one frame and TS_STREAM_READ bytes for what has arrived; TS_STREAM_LIMIT bytes wait for a socket that
 * does not take them, and the wire frames of one packet more. Nothing blocks.
 */
#ifndef TUNSTACK_FAST_STREAM_H
#define TUNSTACK_FAST_STREAM_H

#include "fastpath.h"

#include <sys/types.h>

#define TS_STREAM_FRAME (65535 + 14)
#define TS_STREAM_READ 262144
#define TS_STREAM_LIMIT 1048576
#define TS_STREAM_CHUNK 65536
#define TS_STREAM_PREFIX 4

struct ts_stream {
    /* set when it is opened */
    int32_t fd;
    uint32_t prefix; /* bytes of a length, 1 to TS_STREAM_PREFIX */
    uint8_t little;  /* their order */
    uint8_t l2;
    uint32_t most; /* bytes of the largest frame to send */

    /* counters; Python resets them */
    uint32_t too_long, too_short;

    /* what has arrived, and what waits for the socket: [start, end) */
    uint8_t *in, *out, *train;
    uint32_t in_start, in_end, out_start, out_end, out_capacity;
    uint64_t skip; /* bytes that are still to come of a frame that is none */
    uint8_t is_drained; /* the socket had less than there was room for */
};

/* The device of `fast` is the stream socket `fd` from now on; NULL without memory, or for a prefix that is none. */
struct ts_stream *ts_stream_open(struct ts_fast *fast, int fd, uint32_t prefix, int little, uint32_t most);
/* Begin where somebody else has stopped: with `in`, which has arrived but for the `skip` bytes of a frame that is
 * none, and `out`, which waits. 0, EINVAL if the stream has begun already or that is too much, or ENOMEM. */
int ts_stream_fill(struct ts_stream *stream, const uint8_t *in, uint32_t in_length, uint64_t skip,
                   const uint8_t *out, uint32_t out_length);
/* One packet, virtio-net header first: 0, or an errno: EAGAIN, EINVAL if it is none, or what ended the stream. */
int ts_stream_put(struct ts_stream *stream, const uint8_t *data, uint32_t length);
/* Send what waits: 0, or the errno that ended the stream. */
int ts_stream_flush(struct ts_stream *stream);

/* Between the files. */
void ts_stream_free(struct ts_stream *stream);
/* As read(2) of a TAP into TS_FAST_FRAME bytes; errno is ENOLINK at the end of the stream. */
ssize_t ts_stream_read(struct ts_stream *stream, uint8_t *data);
int ts_stream_has_frame(struct ts_stream *stream);
/* As ts_stream_put of all `views`, the first of which has all headers. */
int ts_stream_write(struct ts_stream *stream, const struct iovec *views, int count);

#endif
