/* Frames that are messages; fast_stream.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_stream.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#define BURST 64

/* Whether the other end will send no more. */
static int is_shut(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};

    return poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

int ts_message_receive(struct ts_stream *stream)
{
    struct mmsghdr messages[TS_STREAM_MESSAGES];
    struct iovec views[TS_STREAM_MESSAGES];
    int got, i;

    if (stream->has_ended) {
        errno = ENOLINK;
        return -1;
    }
    memset(messages, 0, sizeof messages);
    for (i = 0; i < TS_STREAM_MESSAGES; i++) {
        views[i].iov_base = stream->in + (size_t)i * TS_STREAM_SLOT;
        views[i].iov_len = TS_STREAM_SLOT;
        messages[i].msg_hdr.msg_iov = views + i;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    stream->slot = stream->slots = 0;
    got = recvmmsg(stream->fd, messages, TS_STREAM_MESSAGES, MSG_DONTWAIT, NULL);
    if (got < 0) {
        if (errno == EINTR)
            errno = EAGAIN; /* it is ready in the next round */
        return -1;
    }
    for (i = 0; i < got; i++) {
        if (!messages[i].msg_len && stream->is_sequence && is_shut(stream->fd)) {
            stream->has_ended = 1;
            break;
        }
        stream->lengths[stream->slots++] = messages[i].msg_len;
    }
    stream->is_drained = got < TS_STREAM_MESSAGES && !stream->has_ended;
    if (stream->slots || !stream->has_ended)
        return 0;
    errno = ENOLINK;
    return -1;
}

int ts_message_flush(struct ts_stream *stream)
{
    struct mmsghdr messages[BURST];
    struct iovec views[BURST];

    while (stream->out_start != stream->out_end) {
        uint32_t at = stream->out_start, count = 0;
        int sent, i;

        memset(messages, 0, sizeof messages);
        for (; count < BURST && at != stream->out_end; count++) {
            views[count].iov_len = ts_get32(stream->out + at);
            views[count].iov_base = stream->out + at + TS_STREAM_PREFIX;
            messages[count].msg_hdr.msg_iov = views + count;
            messages[count].msg_hdr.msg_iovlen = 1;
            at += TS_STREAM_PREFIX + (uint32_t)views[count].iov_len;
        }
        sent = sendmmsg(stream->fd, messages, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS ? 0 : errno;
        for (i = 0; i < sent; i++)
            stream->out_start += TS_STREAM_PREFIX + (uint32_t)views[i].iov_len;
    }
    return 0;
}

int ts_message_fill(struct ts_stream *stream, const uint8_t *in, uint32_t length)
{
    uint32_t at = 0;

    while (length - at >= TS_STREAM_PREFIX && stream->slots < TS_STREAM_MESSAGES) {
        uint32_t size = ts_get32(in + at);

        at += TS_STREAM_PREFIX;
        if (size > length - at || size > TS_STREAM_SLOT)
            break;
        memcpy(stream->in + (size_t)stream->slots * TS_STREAM_SLOT, in + at, size);
        stream->lengths[stream->slots++] = size;
        at += size;
    }
    return at == length ? 0 : EINVAL;
}
