/* Frames in a stream; fast_stream.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_stream.h"
#include "fast_wire.h"

#include <stdlib.h>
#include <sys/socket.h>

#define IN_CAPACITY (TS_STREAM_PREFIX + TS_FAST_VNET + TS_STREAM_FRAME + TS_STREAM_READ)

struct ts_stream *ts_stream_new(int fd, uint32_t prefix, int little, int l2, uint32_t most)
{
    struct ts_stream *stream;
    socklen_t size = sizeof(int);
    int type = 0;

    if (prefix > TS_STREAM_PREFIX)
        return NULL;
    stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    stream->fd = fd;
    stream->is_messages = !prefix;
    stream->prefix = prefix ? prefix : TS_STREAM_PREFIX;
    stream->little = (uint8_t)!!little;
    stream->l2 = (uint8_t)!!l2;
    stream->most = most < TS_STREAM_FRAME ? most : TS_STREAM_FRAME;
    stream->limit = TS_STREAM_LIMIT;
    if (stream->is_messages && !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size))
        stream->is_sequence = type == SOCK_SEQPACKET;
    stream->in = malloc(stream->is_messages ? (size_t)TS_STREAM_MESSAGES * TS_STREAM_SLOT : IN_CAPACITY);
    stream->train = malloc(TS_FAST_FRAME);
    if (!stream->in || !stream->train) {
        ts_stream_free(stream);
        return NULL;
    }
    return stream;
}

struct ts_stream *ts_stream_open(struct ts_fast *fast, int fd, uint32_t prefix, int little, uint32_t most)
{
    if (fast->stream)
        return NULL;
    fast->stream = ts_stream_new(fd, prefix, little, fast->l2, most);
    return fast->stream;
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

/* Bytes that stand between the length and the frame. */
static uint32_t get_header(const struct ts_stream *stream)
{
    return stream->has_header ? TS_FAST_VNET : 0;
}

/* Whether the header that somebody else has made says nothing of what is not there; see `parse_frame` in Python. */
static int is_sane(const uint8_t *vnet, uint32_t length)
{
    uint32_t train = ts_wire_train(vnet);
    uint16_t start, offset, gso_size;

    memcpy(&gso_size, vnet + 4, 2);
    if (ts_wire_partial(vnet, &start, &offset) && (uint32_t)start + offset + 2 > length)
        return 0;
    if (!vnet[1])
        return 1;
    return gso_size && (train == TS_GSO_TCPV4 || train == TS_GSO_TCPV6 || train == TS_GSO_UDP_L4);
}

static const uint8_t *peek_message(struct ts_stream *stream, uint32_t *length)
{
    for (; stream->slot < stream->slots; stream->slot++) {
        *length = stream->lengths[stream->slot];
        if (*length && *length <= TS_STREAM_FRAME)
            return stream->in + (size_t)stream->slot * TS_STREAM_SLOT;
        *(*length ? &stream->too_long : &stream->too_short) += 1;
    }
    return NULL;
}

const uint8_t *ts_stream_peek(struct ts_stream *stream, uint32_t *length)
{
    const uint8_t *frame;
    uint32_t header = get_header(stream), size;

    if (stream->is_messages)
        return peek_message(stream, length);
    for (;;) {
        uint32_t held = stream->in_end - stream->in_start;
        uint32_t gone = stream->skip < held ? (uint32_t)stream->skip : held;

        stream->in_start += gone;
        stream->skip -= gone;
        held -= gone;
        if (stream->skip || held < stream->prefix)
            return NULL;
        frame = stream->in + stream->in_start + stream->prefix + header;
        size = get_length(stream, frame - header - stream->prefix);
        *length = size - header;
        if (size > header && *length <= TS_STREAM_FRAME) {
            if (held - stream->prefix < size)
                return NULL;
            if (!header || is_sane(frame - header, *length))
                return frame;
            stream->bad_header++;
        } else {
            *(size > header ? &stream->too_long : &stream->too_short) += 1;
        }
        stream->skip = (uint64_t)stream->prefix + size;
    }
}

int ts_stream_has_frame(struct ts_stream *stream)
{
    uint32_t length;

    return ts_stream_peek(stream, &length) != NULL;
}

ssize_t ts_stream_take(struct ts_stream *stream, const uint8_t *frame, uint32_t length, uint8_t *data)
{
    uint32_t header = get_header(stream);

    if (data) {
        memset(data, 0, TS_FAST_VNET);
        memcpy(data + TS_FAST_VNET - header, frame - header, header + length);
        if (stream->is_trusted && !(data[0] & TS_NEEDS_CHECKSUM))
            data[0] |= TS_DATA_VALID;
    }
    if (stream->is_messages)
        stream->slot++;
    else
        stream->in_start += stream->prefix + header + length;
    return TS_FAST_VNET + (ssize_t)length;
}

int ts_stream_receive(struct ts_stream *stream)
{
    uint32_t held = stream->in_end - stream->in_start;
    ssize_t got;

    if (stream->is_messages)
        return ts_message_receive(stream);
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
    const uint8_t *frame = ts_stream_peek(stream, &length);

    if (!frame) {
        if (stream->is_drained) {
            errno = EAGAIN;
            return -1;
        }
        if (ts_stream_receive(stream))
            return -1;
        frame = ts_stream_peek(stream, &length);
        if (!frame) {
            errno = EAGAIN;
            return -1;
        }
    }
    return ts_stream_take(stream, frame, length, data);
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

/* What stands in front of a frame of `length` bytes. */
static void put_length(const struct ts_stream *stream, uint8_t *at, uint32_t length)
{
    uint32_t i, header = get_header(stream);

    memset(at + stream->prefix, 0, header);
    length += header;
    for (i = 0; i < stream->prefix; i++) {
        at[stream->little ? i : stream->prefix - 1 - i] = (uint8_t)length;
        length >>= 8;
    }
}

/* A packet that goes as it is: with its header if it `is_whole`, else with a complete checksum. */
static int put_single(struct ts_stream *stream, const struct iovec *views, int count, uint32_t length, int is_whole)
{
    const uint8_t *vnet = views->iov_base;
    uint32_t gap = stream->prefix + get_header(stream);
    uint32_t first = (uint32_t)views->iov_len - TS_FAST_VNET;
    uint8_t *at, *frame;

    if (length > stream->most)
        return EINVAL;
    at = reserve(stream, gap + length);
    if (!at)
        return EAGAIN;
    frame = at + gap;
    memcpy(frame, vnet + TS_FAST_VNET, first);
    ts_wire_gather(frame + first, views + 1, count - 1);
    put_length(stream, at, length);
    if (is_whole)
        memcpy(at + stream->prefix, vnet, TS_FAST_VNET);
    else
        ts_wire_complete(vnet, frame, length);
    stream->out_end += gap + length;
    return 0;
}

/* A train, which is cut. */
static int put_train(struct ts_stream *stream, const struct iovec *views, int count, uint32_t length)
{
    const uint8_t *vnet = views->iov_base;
    uint32_t most, header, frames, i, rest, size, gap = stream->prefix + get_header(stream);
    uint16_t gso_size;
    uint8_t *at;
    int64_t cut;

    memcpy(&gso_size, vnet + 4, 2);
    most = ts_wire_room(length, gso_size, gap);
    if (!most || gso_size > stream->most)
        return EINVAL;
    ts_wire_gather(stream->train, views, count);
    at = reserve(stream, most);
    if (!at)
        return EAGAIN;
    cut = ts_segment(stream->train + TS_FAST_VNET, length, stream->l2, gso_size, ts_wire_train(vnet),
                     gap, at, most);
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
        at += gap + size;
        rest -= size - header;
    }
    stream->out_end = (uint32_t)(at - stream->out);
    return 0;
}

/* Whether the other end completes and cuts what `vnet` says. */
static int takes_whole(const struct ts_stream *stream, const uint8_t *vnet)
{
    uint32_t train = ts_wire_train(vnet);

    if (!stream->has_header || !(stream->trains & TS_STREAM_CHECKSUM))
        return 0;
    if (!train)
        return 1;
    return stream->trains & (train == TS_GSO_TCPV4   ? TS_STREAM_TSO4
                             : train == TS_GSO_TCPV6 ? TS_STREAM_TSO6
                                                     : TS_STREAM_USO);
}

int ts_stream_write(struct ts_stream *stream, const struct iovec *views, int count)
{
    uint32_t length = ts_wire_length(views, count);
    int failed;

    if (stream->out_end - stream->out_start >= stream->limit)
        return EAGAIN;
    if (!length)
        return EINVAL;
    if (takes_whole(stream, views->iov_base))
        failed = put_single(stream, views, count, length, 1);
    else if (ts_wire_train(views->iov_base))
        failed = put_train(stream, views, count, length);
    else
        failed = put_single(stream, views, count, length, 0);
    if (failed || stream->out_end - stream->out_start < TS_STREAM_CHUNK)
        return failed;
    return ts_stream_flush(stream);
}

int ts_stream_forward(struct ts_stream *stream, const uint8_t *frame, uint32_t length)
{
    uint32_t gap = stream->prefix + get_header(stream);
    uint8_t *at;

    if (stream->out_end - stream->out_start >= stream->limit)
        return EAGAIN;
    at = reserve(stream, gap + length);
    if (!at)
        return EAGAIN;
    put_length(stream, at, length);
    memcpy(at + gap, frame, length);
    stream->out_end += gap + length;
    return 0;
}

int ts_stream_put(struct ts_stream *stream, const uint8_t *data, uint32_t length)
{
    struct iovec view = ts_wire_view(data, length);

    return ts_stream_write(stream, &view, 1);
}

int ts_stream_fill(struct ts_stream *stream, const uint8_t *in, uint32_t in_length, uint64_t skip,
                   const uint8_t *out, uint32_t out_length)
{
    uint8_t *at;

    if (out_length > 2 * TS_STREAM_LIMIT + stream->limit || stream->in_end || stream->slots || stream->out_end)
        return EINVAL;
    if (stream->is_messages ? ts_message_fill(stream, in, in_length) : in_length > IN_CAPACITY)
        return EINVAL;
    if (out_length) {
        at = reserve(stream, out_length);
        if (!at)
            return ENOMEM;
        memcpy(at, out, out_length);
        stream->out_end += out_length;
    }
    if (stream->is_messages)
        return 0;
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
    if (stream->is_messages)
        return ts_message_flush(stream);
    sent = send(stream->fd, stream->out + stream->out_start, stream->out_end - stream->out_start,
                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS ? 0 : errno;
    stream->out_start += (uint32_t)sent;
    return 0;
}
