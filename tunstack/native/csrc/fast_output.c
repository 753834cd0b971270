/*
 * Output of the fast path: what a flow sends at the end of a batch, and its timers (tunstack.tcp.send, receiver,
 * endpoint in the common case); and how data comes from the socket (tunstack.nat.tcp_flow).
 */
#define _GNU_SOURCE
#include "fast_brief.h"
#include "fast_shape.h"
#include "fast_switch.h"
#include "fast_wire.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_SEGMENT (65535 - 120) /* payload of the largest super-segment: send._MAX_SEGMENT */
#define HEADER 32                 /* TCP with timestamps */
#define MAX_ACK_DELAY 0.2
#define MIN_PROBE_TIMEOUT 0.01
#define INITIAL_PROBE_TIMEOUT 1.0

double ts_flow_rto(const struct ts_flow *flow)
{
    double rto = flow->rto * (double)(1u << (flow->backoff < 16 ? flow->backoff : 16));

    return rto < 60 ? rto : 60;
}

/* Bytes that the window should be now, were it free to move; may be negative. */
static int64_t wanted_window(struct ts_fast *fast, struct ts_flow *flow)
{
    int64_t shared = fast->receive_free > 0 ? fast->receive_free : 0, room, most, segment;

    if (flow->rcv_buf > (uint64_t)shared >> fast->receive_share && flow->rcv_buf > flow->rcv_initial) {
        int64_t share = shared >> fast->receive_share;

        flow->rcv_buf = share > flow->rcv_initial ? (uint32_t)share : flow->rcv_initial;
    }
    most = (int64_t)0xffff << flow->rcv_shift;
    room = (int64_t)flow->rcv_buf - ts_flow_readable(flow);
    if (room > most)
        room = most;
    if (room > shared) {
        segment = room < flow->rcv_mss ? room : flow->rcv_mss;
        room = shared >> 3 > segment ? shared >> 3 : segment;
    }
    return room;
}

static int64_t window_of(const struct ts_flow *flow)
{
    int32_t window = ts_diff(flow->rcv_adv, flow->rcv_nxt);

    return window > 0 ? window : 0;
}

static int64_t least_gain(const struct ts_flow *flow)
{
    return flow->rcv_mss < flow->rcv_buf >> 1 ? flow->rcv_mss : flow->rcv_buf >> 1;
}

/* Open the window as far as is worth while; the bytes to advertise. */
static uint32_t advance_window(struct ts_fast *fast, struct ts_flow *flow)
{
    int64_t room = wanted_window(fast, flow), window = window_of(flow);

    if (room - window >= least_gain(flow)) {
        flow->rcv_adv = flow->rcv_nxt + (uint32_t)room;
        return (uint32_t)room;
    }
    return (uint32_t)window;
}

int ts_flow_update_due(struct ts_fast *fast, struct ts_flow *flow)
{
    int64_t window = window_of(flow), gain, most;

    if (flow->phase == TS_CLOSE_WAIT || flow->phase == TS_LAST_ACK)
        return 0; /* behind the guest's FIN nothing comes */
    gain = wanted_window(fast, flow) - window;
    if (gain < least_gain(flow))
        return 0;
    most = (int64_t)0xffff << flow->rcv_shift;
    if (most > flow->rcv_buf)
        most = flow->rcv_buf;
    return gain >= most >> 2 || (window < 2 * (int64_t)flow->rcv_mss && 2 * (int64_t)flow->rcv_mss <= gain) ||
           !window;
}

/* What the device did not take is Python's to send: it has the queue. */
static void refuse(struct ts_fast *fast, const struct iovec *views, int count)
{
    uint32_t length = 0, wanted;
    uint8_t *data;
    int i;

    for (i = 0; i < count; i++)
        length += (uint32_t)views[i].iov_len;
    wanted = fast->refused.length + 4 + length;
    if (wanted > fast->refused_capacity) {
        data = realloc(fast->refused.data, 2 * (size_t)wanted);
        if (!data) {
            fast->write_errors++;
            return;
        }
        fast->refused.data = data;
        fast->refused_capacity = 2 * wanted;
    }
    data = fast->refused.data + fast->refused.length;
    memcpy(data, &length, 4);
    data += 4;
    for (i = 0; i < count; i++) {
        memcpy(data, views[i].iov_base, views[i].iov_len);
        data += views[i].iov_len;
    }
    fast->refused.length = wanted;
    fast->refused_count++;
}

void ts_fast_transmit(struct ts_fast *fast, const struct iovec *views, int count)
{
    if (fast->shape)
        ts_shape_send_down(fast->shape, views, count, fast->now);
    else
        ts_fast_write(fast, views, count);
}

void ts_fast_write(struct ts_fast *fast, const struct iovec *views, int count)
{
    int error = 0;

    if (fast->hold || fast->refused_count) {
        refuse(fast, views, count);
        return;
    }
    if (fast->sw)
        error = ts_switch_write(fast, views, count);
    else if (fast->stream)
        error = ts_stream_write(fast->stream, views, count);
    else if (writev(fast->device_fd, views, count) < 0)
        error = errno;
    switch (error) {
    case 0:
        break;
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
    case EIO: /* the interface is down */
    case EHOSTUNREACH:
        refuse(fast, views, count);
        break;
    case EBADFD:
    case EBADF:
    case ENODEV:
    case ENXIO:
    case EPIPE:
    case ECONNRESET:
        fast->device_errno = error;
        break;
    default:
        fast->write_errors++;
    }
}

int ts_flow_was_idle(const struct ts_flow *flow, double now)
{
    return !flow->sent_first && flow->last_sent_at > 0 && !flow->idle_told &&
           now - flow->last_sent_at > ts_flow_rto(flow);
}

uint32_t ts_flow_stamp(const struct ts_flow *flow, double now)
{
    return (uint32_t)((uint64_t)(now * 1000) + flow->ts_offset);
}

uint8_t *ts_flow_head(const struct ts_flow *flow, uint8_t *head, uint32_t header, uint32_t size, uint32_t flags,
                      uint32_t seq, uint32_t window)
{
    uint8_t *ip = head + TS_FAST_VNET + flow->link_length, *tcp = head + TS_FAST_VNET + flow->head_length;
    uint32_t capable = flow->ecn && size ? 2 : 0;

    memset(head, 0, TS_FAST_VNET);
    memcpy(head + TS_FAST_VNET, flow->head, flow->head_length);
    head[0] = TS_NEEDS_CHECKSUM;
    ts_put_native16(head + 2, size ? flow->head_length + header : flow->head_length + 18);
    ts_put_native16(head + 6, flow->head_length);
    ts_put_native16(head + 8, 16);
    if (size > flow->mss) {
        head[1] = flow->family == 4 ? TS_GSO_TCPV4 : TS_GSO_TCPV6;
        ts_put_native16(head + 4, flow->mss);
    }
    if (flow->family == 4) {
        ip[1] = (uint8_t)capable;
        ts_put16(ip + 2, 20 + header + size);
        ts_put16(ip + 10, 0);
        ts_put16(ip + 10, ts_checksum(ip, 20, 0));
    } else {
        ip[1] = (uint8_t)(capable << 4);
        ts_put16(ip + 4, header + size);
    }
    ts_put16(tcp, flow->local_port);
    ts_put16(tcp + 2, flow->remote_port);
    ts_put32(tcp + 4, seq);
    ts_put32(tcp + 8, flow->rcv_nxt);
    tcp[12] = (uint8_t)(header << 2);
    tcp[13] = (uint8_t)flags;
    ts_put16(tcp + 14, window < 0xffff ? window : 0xffff);
    ts_put16(tcp + 16, ts_folded(flow->pseudo_sum + header + size));
    ts_put16(tcp + 18, 0);
    return tcp;
}

/* Send `size` bytes from `offset` of the queue, or a pure acknowledgement, numbered `seq`. */
static void emit(struct ts_fast *fast, struct ts_flow *flow, uint32_t flags, uint32_t seq, uint32_t offset,
                 uint32_t size, double now)
{
    uint8_t head[TS_FAST_VNET + TS_FAST_HEAD + HEADER], *tcp;
    uint32_t segments;
    struct iovec views[8];
    int count = 1;

    tcp = ts_flow_head(flow, head, HEADER, size, flags, seq, advance_window(fast, flow) >> flow->rcv_shift);
    ts_put32(tcp + 20, 0x0101080a);
    ts_put32(tcp + 24, ts_flow_stamp(flow, now));
    ts_put32(tcp + 28, flow->ts_recent);

    flow->ack_pending = 0;
    ts_flow_disarm_ack(fast, flow);
    flow->last_ack_sent = flow->rcv_nxt;
    flow->ack_now = 0;
    segments = size > flow->mss ? (size + flow->mss - 1) / flow->mss : 1;
    flow->segments_out += segments;
    fast->segments_fast_out += segments;

    views[0].iov_base = head;
    views[0].iov_len = TS_FAST_VNET + flow->head_length + HEADER;
    if (size)
        count += ts_chain_views(&flow->out, offset, size, views + 1, 7);
    ts_fast_transmit(fast, views, count);
}

/* RFC 9293 3.8.6.2.1: whole segments, or half of the largest window ever offered. */
static int64_t avoid_silly_window(const struct ts_flow *flow, int64_t size, int64_t offered)
{
    if (size >= flow->mss)
        return size - size % flow->mss;
    if (size > 0 && size == offered && size * 2 >= flow->snd_max_wnd)
        return size;
    return 0;
}

static uint32_t train_of(const struct ts_flow *flow)
{
    uint32_t most = flow->train > 2 * flow->mss ? flow->train : 2 * flow->mss;

    if (most > MAX_SEGMENT)
        most = MAX_SEGMENT;
    return most >= flow->mss ? most - most % flow->mss : flow->mss;
}

static uint32_t send_new_data(struct ts_fast *fast, struct ts_flow *flow, double now)
{
    uint32_t sent = 0, train = train_of(flow);

    while (flow->phase != TS_LAST_ACK && flow->sent_count < TS_FAST_RECORDS) {
        uint32_t flight = flow->snd_nxt - flow->snd_una, flags, fin;
        int64_t unsent = (int64_t)flow->out.length - flight;
        int64_t offered = (int64_t)flow->snd_wnd - flight, allowed = (int64_t)flow->cwnd - flight;
        int64_t size = unsent;

        if (!unsent && !flow->fin_queued)
            break;
        if (offered < size)
            size = offered;
        if (allowed < size)
            size = allowed;
        if (allowed < unsent && allowed <= offered)
            flow->was_limited = 1;
        if (size < unsent) {
            size = avoid_silly_window(flow, size, offered);
            if (size <= 0)
                break;
        }
        if (size > train)
            size = train;
        fin = flow->fin_queued && size == unsent && offered > size;
        if (!size && !fin)
            break;
        if (ts_flow_sent(fast, flow, flow->snd_nxt, flow->snd_nxt + (uint32_t)size + fin, now)) {
            ts_flow_return(fast, flow, TS_MEMORY);
            break;
        }
        flags = TS_ACK | (size && size == unsent ? TS_PSH : 0) | (fin ? TS_FIN : 0);
        emit(fast, flow, flags, flow->snd_nxt, flight, (uint32_t)size, now);
        flow->snd_nxt += (uint32_t)size + fin;
        if (fin)
            flow->phase = TS_LAST_ACK;
        flow->last_sent_at = now;
        flow->probe_due = 1;
        flow->idle_told = 0;
        sent++;
    }
    return sent;
}

/* What the timer is for, after a transmission round. */
static void arm(struct ts_fast *fast, struct ts_flow *flow, double now)
{
    if (flow->sent_first) {
        if (flow->timer == TS_TIMER_IDLE || flow->rto_at == TS_NEVER)
            flow->rto_at = now + ts_flow_rto(flow);
        flow->timer = TS_TIMER_RTO;
        flow->deadline = flow->rto_at;
        if (flow->probe_due) {
            double patience = INITIAL_PROBE_TIMEOUT;

            if (flow->srtt >= 0) {
                patience = 2 * flow->srtt > MIN_PROBE_TIMEOUT ? 2 * flow->srtt : MIN_PROBE_TIMEOUT;
                if (flow->snd_nxt - flow->snd_una <= flow->mss)
                    patience += MAX_ACK_DELAY;
            }
            flow->probe_deadline = now + patience < flow->rto_at ? now + patience : flow->rto_at;
        }
        flow->probe_due = 0;
        if (flow->probe_deadline <= flow->rto_at) {
            flow->timer = TS_TIMER_TLP;
            flow->deadline = flow->probe_deadline;
        }
        if (flow->is_brief)
            ts_brief_arm(fast, flow->deadline);
        else if (flow->deadline < flow->armed)
            ts_flow_report(fast, flow, TS_REPORT_TIMER);
    } else if (flow->out.length || flow->fin_queued) {
        ts_flow_return(fast, flow, TS_PERSIST);
    } else if (flow->timer != TS_TIMER_IDLE) {
        flow->timer = TS_TIMER_IDLE;
        flow->rto_at = flow->deadline = TS_NEVER;
    }
}

static int ack_due(struct ts_fast *fast, struct ts_flow *flow, double now)
{
    if (flow->ack_now || flow->ack_pending >= 2 * (uint64_t)flow->rcv_mss)
        return 1;
    if (flow->ack_pending && flow->ack_deadline == TS_NEVER)
        ts_flow_arm_ack(fast, flow, now + fast->delayed_ack);
    return 0;
}

void ts_flow_flush(struct ts_fast *fast, struct ts_flow *flow, double now)
{
    if (flow->acked) {
        if (!flow->was_limited)
            flow->unlimited_at = now;
        flow->was_limited = 0;
    }
    flow->acked = flow->advanced = flow->delivered = 0;
    flow->rtt_sample = -1;
    if (!send_new_data(fast, flow, now)) {
        arm(fast, flow, now);
        if (ack_due(fast, flow, now) || ts_flow_update_due(fast, flow))
            emit(fast, flow, TS_ACK, flow->snd_nxt, 0, 0, now);
        return;
    }
    arm(fast, flow, now);
}

uint32_t ts_flow_send_room(const struct ts_fast *fast, const struct ts_flow *flow)
{
    int64_t most = 2 * (int64_t)flow->cwnd, share = fast->send_free - fast->send_reserve;

    if (flow->min_rtt < fast->short_path && most > share)
        most = share;
    if (most < flow->send_floor)
        most = flow->send_floor;
    if (most > flow->send_most)
        most = flow->send_most;
    return most > flow->out.length ? (uint32_t)most - flow->out.length : 0;
}

static void starve(struct ts_fast *fast, struct ts_flow *flow)
{
    flow->starved = 1;
    ts_flow_want(fast, flow, flow->interest & ~(uint32_t)EPOLLIN);
    if (!flow->out.length)
        ts_flow_return(fast, flow, TS_MEMORY); /* nothing is under way that could make room */
}

static void feed(struct ts_fast *fast, struct ts_flow *flow)
{
    flow->starved = 0;
    ts_flow_want(fast, flow, flow->interest | EPOLLIN);
}

void ts_flow_read(struct ts_fast *fast, struct ts_flow *flow)
{
    struct iovec views[TS_FAST_IOV];
    struct msghdr message;
    uint32_t room = ts_flow_send_room(fast, flow), size = flow->read_size < room ? flow->read_size : room;
    ssize_t got;
    int count = 0, error;

    if (size && ts_chain_reserve(fast, &flow->out, size, views, &count)) {
        ts_chain_commit(fast, &flow->out, 0);
        ts_flow_return(fast, flow, TS_MEMORY);
        return;
    }
    if (!count) {
        starve(fast, flow);
        return;
    }
    memset(&message, 0, sizeof message);
    message.msg_iov = views;
    message.msg_iovlen = (size_t)count;
    got = recvmsg(flow->fd, &message, MSG_DONTWAIT);
    error = got < 0 ? errno : 0;
    ts_chain_commit(fast, &flow->out, got > 0 ? (uint32_t)got : 0);
    if (got <= 0) {
        if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR) {
            feed(fast, flow);
            return;
        }
        flow->socket_errno = error;
        if (!got && flow->is_brief)
            ts_brief_end_of_file(fast, flow);
        else
            ts_flow_return(fast, flow, got < 0 ? TS_SOCKET_ERROR : TS_END_OF_FILE);
        return;
    }
    ts_fast_mark(fast, flow);
    flow->bytes_down += (uint64_t)got;
    if ((uint32_t)got == size) {
        if (size == flow->read_size && size < fast->read_maximum)
            flow->read_size = 2 * size;
        if (size == room) {
            starve(fast, flow);
            return;
        }
    } else if ((uint64_t)got * 8 < flow->read_size && flow->read_size > fast->read_minimum) {
        flow->read_size >>= 1;
    }
    if (flow->starved)
        feed(fast, flow);
}
