/* Frames in a stream; fast_stream.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_stream.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#define NEEDS_CSUM 1
#define GSO_ECN 0x80
#define UDP_CHECKSUM 6
#define IN_CAPACITY (TS_STREAM_PREFIX + TS_STREAM_FRAME + TS_STREAM_READ)
#define MOST_HEADERS (14 + 60 + 60) /* Ethernet, IPv4 with options, TCP with options */
#define MOST_FRAMES 2048            /* of one train: 64 KiB at the least MSS are 1,366 */

struct ts_stream *ts_stream_open(struct ts_fast *fast, int fd, uint32_t prefix, int little, uint32_t most)
{
    struct ts_stream *stream;

    if (!prefix || prefix > TS_STREAM_PREFIX || fast->stream)
        return NULL;
    stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    stream->fd = fd;
    stream->prefix = prefix;
    stream->little = (uint8_t)!!little;
    stream->l2 = fast->l2;
    stream->most = most < TS_STREAM_FRAME ? most : TS_STREAM_FRAME;
    stream->in = malloc(IN_CAPACITY);
    stream->train = malloc(TS_FAST_FRAME);
    if (!stream->in || !stream->train) {
        ts_stream_free(stream);
        return NULL;
    }
    fast->stream = stream;
    return stream;
}

void ts_stream_free(struct ts_stream *stream)
{
    if (!stream)
        return;
    free(stream->in);
    free(stream->out);
    free(stream->train);
    free(stream);
}

/* Reading. */

static uint32_t get_length(const struct ts_stream *stream, const uint8_t *at)
{
    uint32_t length = 0, i;

    for (i = 0; i < stream->prefix; i++)
        length = length << 8 | at[stream->little ? stream->prefix - 1 - i : i];
    return length;
}

/* The next whole frame, which stays where it is; NULL if there is none. */
static const uint8_t *peek(struct ts_stream *stream, uint32_t *length)
{
    for (;;) {
        uint32_t held = stream->in_end - stream->in_start;
        uint32_t gone = stream->skip < held ? (uint32_t)stream->skip : held;

        stream->in_start += gone;
        stream->skip -= gone;
        held -= gone;
        if (stream->skip || held < stream->prefix)
            return NULL;
        *length = get_length(stream, stream->in + stream->in_start);
        if (*length && *length <= TS_STREAM_FRAME)
            return held - stream->prefix < *length ? NULL : stream->in + stream->in_start + stream->prefix;
        *(*length ? &stream->too_long : &stream->too_short) += 1;
        stream->skip = (uint64_t)stream->prefix + *length;
    }
}

int ts_stream_has_frame(struct ts_stream *stream)
{
    uint32_t length;

    return peek(stream, &length) != NULL;
}

/* 0, or -1 with errno: nothing has arrived. */
static int receive(struct ts_stream *stream)
{
    uint32_t held = stream->in_end - stream->in_start;
    ssize_t got;

    memmove(stream->in, stream->in + stream->in_start, held);
    stream->in_start = 0;
    stream->in_end = held;
    got = recv(stream->fd, stream->in + held, IN_CAPACITY - held, MSG_DONTWAIT);
    if (got <= 0) {
        if (!got)
            errno = ENOLINK;
        else if (errno == EINTR)
            errno = EAGAIN; /* it is ready in the next round */
        return -1;
    }
    stream->in_end += (uint32_t)got;
    stream->is_drained = (uint32_t)got < IN_CAPACITY - held;
    return 0;
}

ssize_t ts_stream_read(struct ts_stream *stream, uint8_t *data)
{
    uint32_t length = 0;
    const uint8_t *frame = peek(stream, &length);

    if (!frame) {
        if (stream->is_drained) {
            errno = EAGAIN;
            return -1;
        }
        if (receive(stream))
            return -1;
        frame = peek(stream, &length);
        if (!frame) {
            errno = EAGAIN;
            return -1;
        }
    }
    memset(data, 0, TS_FAST_VNET);
    memcpy(data + TS_FAST_VNET, frame, length);
    stream->in_start += stream->prefix + length;
    return TS_FAST_VNET + (ssize_t)length;
}

/* Writing. */

/* Room for `length` bytes more behind what waits; NULL without memory. */
static uint8_t *reserve(struct ts_stream *stream, uint32_t length)
{
    uint32_t held = stream->out_end - stream->out_start, wanted;
    uint8_t *fresh;

    if (!held)
        stream->out_start = stream->out_end = 0;
    if (stream->out_capacity - stream->out_end < length && stream->out_start) {
        memmove(stream->out, stream->out + stream->out_start, held);
        stream->out_start = 0;
        stream->out_end = held;
    }
    if (stream->out_capacity - stream->out_end < length) {
        wanted = 2 * (held + length);
        fresh = realloc(stream->out, wanted);
        if (!fresh)
            return NULL;
        stream->out = fresh;
        stream->out_capacity = wanted;
    }
    return stream->out + stream->out_end;
}

static void put_length(const struct ts_stream *stream, uint8_t *at, uint32_t length)
{
    uint32_t i;

    for (i = 0; i < stream->prefix; i++) {
        at[stream->little ? i : stream->prefix - 1 - i] = (uint8_t)length;
        length >>= 8;
    }
}

static uint8_t *gather(uint8_t *to, const struct iovec *views, int count)
{
    int i;

    for (i = 0; i < count; i++) {
        memcpy(to, views[i].iov_base, views[i].iov_len);
        to += views[i].iov_len;
    }
    return to;
}

/* A packet that goes as it is, but for its checksum. */
static int put_single(struct ts_stream *stream, const struct iovec *views, int count, uint32_t length)
{
    const uint8_t *vnet = views->iov_base;
    uint8_t *at, *frame;
    uint16_t start, offset;
    uint32_t checksum;

    memcpy(&start, vnet + 6, 2);
    memcpy(&offset, vnet + 8, 2);
    if (length > stream->most || (vnet[0] & NEEDS_CSUM && (uint32_t)start + offset + 2 > length))
        return EINVAL;
    at = reserve(stream, stream->prefix + length);
    if (!at)
        return EAGAIN;
    frame = at + stream->prefix;
    memcpy(frame, (const uint8_t *)views->iov_base + TS_FAST_VNET, views->iov_len - TS_FAST_VNET);
    gather(frame + views->iov_len - TS_FAST_VNET, views + 1, count - 1);
    put_length(stream, at, length);
    if (vnet[0] & NEEDS_CSUM) {
        checksum = ts_checksum(frame + start, length - start, 0);
        if (!checksum && offset == UDP_CHECKSUM)
            checksum = 0xffff; /* RFC 768: zero means that there is none */
        ts_put16(frame + start + offset, checksum);
    }
    stream->out_end += stream->prefix + length;
    return 0;
}

/* A train, which is cut. */
static int put_train(struct ts_stream *stream, const struct iovec *views, int count, uint32_t length)
{
    const uint8_t *vnet = views->iov_base;
    uint32_t most, header, frames, i, rest, size;
    uint16_t gso_size;
    uint8_t *at;
    int64_t cut;

    memcpy(&gso_size, vnet + 4, 2);
    if (!gso_size || gso_size > stream->most || length / gso_size > MOST_FRAMES)
        return EINVAL;
    gather(stream->train, views, count);
    most = length + (length / gso_size + 1) * (MOST_HEADERS + stream->prefix);
    at = reserve(stream, most);
    if (!at)
        return EAGAIN;
    cut = ts_segment(stream->train + TS_FAST_VNET, length, stream->l2, gso_size, vnet[1] & ~(uint32_t)GSO_ECN,
                     stream->prefix, at, most);
    if (cut < 0)
        return EINVAL;
    header = (uint32_t)(cut >> 32);
    frames = (uint32_t)cut;
    if (header + gso_size > stream->most)
        return EINVAL;
    rest = length - header;
    for (i = 0; i < frames; i++) {
        size = header + (rest < gso_size ? rest : gso_size);
        put_length(stream, at, size);
        at += stream->prefix + size;
        rest -= size - header;
    }
    stream->out_end = (uint32_t)(at - stream->out);
    return 0;
}

int ts_stream_write(struct ts_stream *stream, const struct iovec *views, int count)
{
    size_t length = 0;
    int failed, i;

    if (stream->out_end - stream->out_start >= TS_STREAM_LIMIT)
        return EAGAIN;
    for (i = 0; i < count; i++)
        length += views[i].iov_len;
    if (views->iov_len <= TS_FAST_VNET || length >= TS_FAST_FRAME)
        return EINVAL;
    length -= TS_FAST_VNET;
    if (((const uint8_t *)views->iov_base)[1] & ~GSO_ECN)
        failed = put_train(stream, views, count, (uint32_t)length);
    else
        failed = put_single(stream, views, count, (uint32_t)length);
    if (failed || stream->out_end - stream->out_start < TS_STREAM_CHUNK)
        return failed;
    return ts_stream_flush(stream);
}

int ts_stream_put(struct ts_stream *stream, const uint8_t *data, uint32_t length)
{
    struct iovec view;

    view.iov_base = (void *)(uintptr_t)data;
    view.iov_len = length;
    return ts_stream_write(stream, &view, 1);
}

int ts_stream_fill(struct ts_stream *stream, const uint8_t *in, uint32_t in_length, uint64_t skip,
                   const uint8_t *out, uint32_t out_length)
{
    uint8_t *at;

    if (in_length > IN_CAPACITY || out_length > 2 * TS_STREAM_LIMIT || stream->in_end || stream->out_end)
        return EINVAL;
    if (out_length) {
        at = reserve(stream, out_length);
        if (!at)
            return ENOMEM;
        memcpy(at, out, out_length);
        stream->out_end += out_length;
    }
    if (in_length)
        memcpy(stream->in, in, in_length);
    stream->in_end = in_length;
    stream->skip = skip;
    return 0;
}

int ts_stream_flush(struct ts_stream *stream)
{
    ssize_t sent;

    if (stream->out_start == stream->out_end)
        return 0;
    sent = send(stream->fd, stream->out + stream->out_start, stream->out_end - stream->out_start,
                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS ? 0 : errno;
    stream->out_start += (uint32_t)sent;
    return 0;
}
