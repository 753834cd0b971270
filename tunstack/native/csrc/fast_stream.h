/*
 * A socket that carries bare frames, as a device with all offloads: what the rest of the fast path reads from it
 * and writes to it looks as it does at a TAP, virtio-net header first. In a stream each frame stands behind its
 * length; other sockets keep messages apart, and each is a frame.
 *
 * Theory of operation. Reading: one recv fills what is free of one buffer; each read copies the next whole frame
 * out of it, with a virtio-net header that promises nothing. Frames may be left when the descriptor is no longer
 * readable: `ts_stream_has_frame` tells. A length that no frame can have is skipped and counted, as
 * `tunstack.link.framings` does. Writing: trains are cut, checksums completed, and the frames collected behind
 * their lengths until `ts_stream_flush` sends them in one go. Messages are received and sent many at once, and
 * wait in the same buffers.
 *
 * Bounds: one frame and TS_STREAM_READ bytes for what has arrived, or TS_STREAM_MESSAGES messages; `limit` bytes
 * wait for a socket that does not take them, and the wire frames of one packet more. Nothing blocks.
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
#define TS_STREAM_MESSAGES 16
#define TS_STREAM_CHECKSUM 1
#define TS_STREAM_TSO4 2
#define TS_STREAM_TSO6 4
#define TS_STREAM_USO 8
#define TS_STREAM_SLOT (TS_STREAM_FRAME + 1) /* a frame that is cut off is longer than any */

struct ts_stream {
    /* set when it is opened */
    int32_t fd;
    uint32_t prefix;     /* bytes of a length, 1 to TS_STREAM_PREFIX */
    uint8_t little;      /* their order */
    uint8_t is_messages; /* there are lengths only in `out` */
    uint8_t is_sequence; /* an empty message may be the end */
    uint8_t is_trusted;  /* checksums of what arrives are right */
    uint8_t has_header;  /* a virtio-net header stands in front of each frame, within its length */
    uint8_t trains;      /* what it may leave to the other end: bits of TS_STREAM_* */
    uint8_t l2;
    uint32_t most;  /* bytes of the largest frame to send */
    uint32_t limit; /* bytes that may wait */

    /* counters; Python resets them */
    uint32_t too_long, too_short, bad_header;

    /* what has arrived, and what waits for the socket: [start, end) */
    uint8_t *in, *out, *train;
    uint32_t in_start, in_end, out_start, out_end, out_capacity;
    uint64_t skip; /* bytes that are still to come of a frame that is none */
    uint8_t is_drained; /* the socket had less than there was room for */

    /* messages that have arrived, each at its slot of `in`: [slot, slots) */
    uint32_t slot, slots, lengths[TS_STREAM_MESSAGES];
    uint8_t has_ended;
};

/*
 * The device of `fast` is the socket `fd` from now on, a stream whose lengths have `prefix` bytes, or 0: messages.
 * NULL without memory, or for a prefix that is none.
 */
struct ts_stream *ts_stream_open(struct ts_fast *fast, int fd, uint32_t prefix, int little, uint32_t most);
/* Begin where somebody else has stopped: with `in`, which has arrived but for the `skip` bytes of a frame that is
 * none, and `out`, which waits; messages stand behind their lengths, 4 bytes in network order. 0, EINVAL if the stream has begun already or that is too much, or ENOMEM. */
int ts_stream_fill(struct ts_stream *stream, const uint8_t *in, uint32_t in_length, uint64_t skip,
                   const uint8_t *out, uint32_t out_length);
/* One packet, virtio-net header first: 0, or an errno: EAGAIN, EINVAL if it is none, or what ended the stream. */
int ts_stream_put(struct ts_stream *stream, const uint8_t *data, uint32_t length);
/* Send what waits: 0, or the errno that ended the stream. */
int ts_stream_flush(struct ts_stream *stream);

/* Between the files. */
struct ts_stream *ts_stream_new(int fd, uint32_t prefix, int little, int l2, uint32_t most);
void ts_stream_free(struct ts_stream *stream);
/* As read(2) of a TAP into TS_FAST_FRAME bytes; errno is ENOLINK at the end of the stream. */
ssize_t ts_stream_read(struct ts_stream *stream, uint8_t *data);
/* The next whole frame, which stays where it is until `ts_stream_take`; NULL if there is none. */
const uint8_t *ts_stream_peek(struct ts_stream *stream, uint32_t *length);
/* It has been dealt with, and copied behind a virtio-net header to `data` before, if that is not NULL. */
ssize_t ts_stream_take(struct ts_stream *stream, const uint8_t *frame, uint32_t length, uint8_t *data);
/* What has arrived: 0, or -1 with errno, ENOLINK at the end. */
int ts_stream_receive(struct ts_stream *stream);
int ts_stream_has_frame(struct ts_stream *stream);
/* As ts_stream_put of all `views`, the first of which has all headers. */
int ts_stream_write(struct ts_stream *stream, const struct iovec *views, int count);
/* A wire frame as it is: 0, or EAGAIN. */
int ts_stream_forward(struct ts_stream *stream, const uint8_t *frame, uint32_t length);

/* The same for messages; fast_message.c. */
int ts_message_receive(struct ts_stream *stream);
int ts_message_flush(struct ts_stream *stream);
/* Messages, each behind its length; EINVAL if that is no such thing. */
int ts_message_fill(struct ts_stream *stream, const uint8_t *in, uint32_t length);

#endif
