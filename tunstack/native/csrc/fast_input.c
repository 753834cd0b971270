/*
 * Input of the fast path: what a frame does to a flow (tunstack.tcp.arrivals, loss, receiver in the common
 * case), and how payload gets to the socket (tunstack.nat.tcp_flow).
 */
#define _GNU_SOURCE
#include "fast_brief.h"
#include "fast_wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define NOP_NOP_TIMESTAMP 0x0101080au
#define MIN_RTT_MEMORY 300.0
#define MIN_RTO 0.2

/* What of a segment matters here. */
struct segment {
    const uint8_t *payload;
    uint32_t size, seq, ack, window, stamp, echo, segments, wire;
};

int ts_fast_find_ip(const struct ts_fast *fast, const uint8_t *frame, uint32_t length, const uint8_t **ip,
                    uint32_t *end)
{
    uint32_t base = 0, total;

    if (fast->l2) {
        if (length < TS_ETHERNET + 20 || memcmp(frame, fast->mac, 6))
            return 0;
        base = TS_ETHERNET;
        total = ts_get16(frame + 12);
        if (total != (frame[base] >> 4 == 4 ? 0x0800u : 0x86ddu))
            return 0;
    }
    *ip = frame + base;
    length -= base;
    if (length < 20)
        return 0;
    if (**ip == 0x45) {
        total = ts_get16(*ip + 2);
        *end = base + total;
        return total > length || total < 20 || ts_ones_sum(*ip, 20, 0) != 0xffff ? 0 : 4;
    }
    if (**ip >> 4 != 6 || length < 40)
        return 0;
    total = 40 + ts_get16(*ip + 4);
    *end = base + total;
    return total > length ? 0 : 6;
}

uint32_t ts_fast_find_layer4(const struct ts_fast *fast, const uint8_t *frame, uint32_t length,
                             uint32_t protocol, uint32_t least, int *family, const uint8_t **ip,
                             uint32_t *end)
{
    uint32_t at;

    *family = ts_fast_find_ip(fast, frame, length, ip, end);
    if (*family == 4) {
        if ((*ip)[9] != protocol || (*ip)[8] <= 1 || ts_get16(*ip + 6) & 0x3fff)
            return 0;
    } else if (*family != 6 || (*ip)[6] != protocol || (*ip)[7] <= 1) {
        return 0;
    }
    at = (uint32_t)(*ip - frame) + (*family == 4 ? 20 : 40);
    return at + least <= *end ? at : 0;
}

/* 1 if the checksum is right, or may be taken for right; and the train's metadata make sense. */
static int check_metadata(const struct ts_fast *fast, const uint8_t *vnet, const uint8_t *frame, uint32_t tcp,
                          uint32_t end, int family, const uint8_t *ip, struct segment *segment)
{
    uint16_t start, offset, gso_size;
    uint32_t gso_type = vnet[1];

    memcpy(&gso_size, vnet + 4, 2);
    memcpy(&start, vnet + 6, 2);
    memcpy(&offset, vnet + 8, 2);
    segment->segments = 1;
    if (gso_type) {
        if ((gso_type & ~TS_GSO_ECN) != (family == 4 ? TS_GSO_TCPV4 : TS_GSO_TCPV6) || !gso_size)
            return 0;
        if (segment->size > gso_size)
            segment->segments = (segment->size + gso_size - 1) / gso_size;
    }
    segment->wire = segment->size / segment->segments;
    if (vnet[0] & TS_NEEDS_CHECKSUM)
        return start == tcp && offset == 16;
    if (vnet[0] & TS_DATA_VALID)
        return 1;
    return ts_wire_verify(fast, frame + tcp, end - tcp, 16, ip, family, TS_PROTOCOL_TCP);
}

/* Whether `segment` is one of the common ones for `flow` in the state that it is in. */
static int is_common(const struct ts_fast *fast, const struct ts_flow *flow, const struct segment *segment)
{
    int32_t acked = ts_diff(segment->ack, flow->snd_una);
    uint32_t window = flow->rcv_adv - flow->rcv_nxt;

    if (segment->seq != flow->rcv_nxt || ts_diff(segment->stamp, flow->ts_recent) < 0 || !segment->window)
        return 0;
    if (segment->size) {
        if (ts_diff(flow->rcv_adv, flow->rcv_nxt) < 0 || segment->size > window ||
            (int64_t)segment->size > fast->receive_free || flow->borrowed_count == TS_FAST_FRAMES)
            return 0;
    }
    if (acked > 0)
        return ts_diff(segment->ack, flow->snd_nxt) <= 0;
    return flow->snd_una - segment->ack <= flow->snd_max_wnd; /* RFC 5961 5.2 */
}

/* Whether `segment`, which is common, is so in the phase of `flow`. */
static int suits_phase(const struct ts_flow *flow, const struct segment *segment, uint32_t fin)
{
    switch (flow->phase) {
    case TS_ESTABLISHED:
        return !fin || flow->is_brief;
    case TS_SYN_RECEIVED:
        return segment->ack == flow->snd_nxt;
    case TS_CONNECTING:
        return 0;
    default:
        return !fin && !segment->size;
    }
}

/*
 * Whether a reset tells that our FIN, and nothing else, was still under way: a guest that has no more room for
 * TIME-WAIT answers it so.
 */
static int ends_last_ack(const struct ts_flow *flow, const uint8_t *tcp, uint32_t rest)
{
    return tcp[12] == 5 << 4 && !rest && !flow->out.length && ts_get32(tcp + 4) == flow->rcv_nxt;
}

void ts_flow_sample(struct ts_flow *flow, double rtt, double now)
{
    double spread;

    if (rtt <= flow->min_rtt || now - flow->smallest_at >= MIN_RTT_MEMORY) {
        flow->min_rtt = rtt;
        flow->smallest_at = now;
    }
    if (flow->srtt < 0) {
        flow->srtt = rtt;
        flow->rttvar = rtt / 2;
    } else {
        flow->rttvar += (fabs(flow->srtt - rtt) - flow->rttvar) / 4;
        flow->srtt += (rtt - flow->srtt) / 8;
    }
    spread = 4 * flow->rttvar;
    flow->rto = flow->srtt + (spread > MIN_RTO ? spread : MIN_RTO);
    if (flow->rto > 60)
        flow->rto = 60;
    flow->backoff = 0;
    if (flow->rtt_sample < 0 || rtt < flow->rtt_sample)
        flow->rtt_sample = rtt;
}

/* New data is acknowledged; everything that is outstanding was sent once, and nothing is missing. */
static void acknowledge(struct ts_fast *fast, struct ts_flow *flow, uint32_t ack, double now)
{
    uint32_t advanced = ack - flow->snd_una;
    uint32_t flight = flow->snd_nxt - flow->snd_una;
    double sent_at = -1;
    uint32_t end = 0;

    if ((uint64_t)flight * 2 >= flow->cwnd)
        flow->was_limited = 1;
    while (flow->sent_first && ts_diff(flow->sent_first->seq, ack) < 0) {
        struct ts_sent *record = flow->sent_first;
        uint32_t last = ts_diff(record->end, ack) <= 0 ? record->end : ack;

        if (record->at > sent_at || (record->at == sent_at && ts_diff(end, last) < 0)) {
            sent_at = record->at;
            end = last;
        }
        if (last != record->end) {
            if (ts_flow_cut_sent(fast, flow, ack))
                ts_flow_return(fast, flow, TS_MEMORY);
            break;
        }
        ts_flow_drop_sent(fast, flow);
    }
    ts_chain_release(fast, &flow->out, &fast->send_free, advanced);
    flow->snd_una = ack;
    flow->bytes_out += advanced;
    flow->advanced += advanced;
    flow->acked += advanced;
    flow->probe_due = 1;
    if (sent_at >= 0) {
        ts_flow_sample(flow, now - sent_at, now);
        flow->delivered += advanced;
        flow->rack_rtt = now - sent_at;
        if (sent_at > flow->rack_sent_at ||
            (sent_at == flow->rack_sent_at && ts_diff(flow->rack_end, end) < 0)) {
            flow->rack_sent_at = sent_at;
            flow->rack_end = end;
        }
    }
    if (flow->rto_at != TS_NEVER)
        flow->rto_at = flow->sent_first ? now + ts_flow_rto(flow) : TS_NEVER;
}

static void update_window(struct ts_flow *flow, const struct segment *segment)
{
    uint32_t window = segment->window << flow->snd_shift;

    if (ts_diff(flow->snd_wl1, segment->seq) >= 0 && ts_diff(flow->snd_wl2, segment->ack) >= 0 &&
        (flow->snd_wl1 != segment->seq || flow->snd_wl2 != segment->ack))
        return;
    flow->snd_wnd = window;
    if (window > flow->snd_max_wnd)
        flow->snd_max_wnd = window;
    flow->snd_wl1 = segment->seq;
    flow->snd_wl2 = segment->ack;
}

static void take(struct ts_fast *fast, struct ts_flow *flow, const struct segment *segment, double now)
{
    int32_t acked = ts_diff(segment->ack, flow->snd_una);

    flow->segments_in += segment->segments;
    fast->segments_fast_in += segment->segments;
    ts_fast_mark(fast, flow);
    if (ts_diff(segment->seq, flow->last_ack_sent) <= 0) {
        flow->ts_recent = segment->stamp;
        flow->ts_recent_age = now;
        flow->ts_echo = segment->echo;
    }
    flow->heard_at = now;
    if (acked > 0) {
        acknowledge(fast, flow, segment->ack, now);
        flow->is_notified = 1;
    }
    if (acked >= 0)
        update_window(flow, segment);
    if (segment->size) {
        if (segment->wire > flow->rcv_mss)
            flow->rcv_mss = segment->wire;
        flow->borrowed[flow->borrowed_count] = segment->payload;
        flow->borrowed_length[flow->borrowed_count++] = segment->size;
        flow->borrowed_bytes += segment->size;
        fast->receive_free -= segment->size;
        flow->rcv_nxt += segment->size;
        flow->bytes_in += segment->size;
        flow->ack_pending += segment->size;
        flow->is_notified = 1;
    }
}

int ts_fast_receive(struct ts_fast *fast, const uint8_t *data, uint32_t length, double now)
{
    const uint8_t *frame = data + TS_FAST_VNET, *ip, *tcp;
    uint32_t at, end, header;
    int family = 0;
    struct ts_flow *flow;
    struct segment segment;

    if (length <= TS_FAST_VNET)
        return 0;
    at = ts_fast_find_layer4(fast, frame, length - TS_FAST_VNET, TS_PROTOCOL_TCP, 20, &family, &ip, &end);
    if (!at || ((family == 4 ? ip[1] : ip[1] >> 4) & 3) == 3)
        return 0; /* a mark of congestion is Python's to echo */
    tcp = frame + at;
    flow = ts_fast_find(fast, ip + (family == 4 ? 12 : 8), family, tcp);
    if (!flow && tcp[13] == TS_SYN && fast->briefs->door_count) {
        segment.size = 0;
        return check_metadata(fast, data, frame, at, end, family, ip, &segment) &&
               ts_brief_open(fast, frame, at, end, family, ip, now);
    }
    if (!flow || (fast->l2 && memcmp(frame + 6, flow->mac, 6)))
        return 0;
    header = (uint32_t)(tcp[12] >> 4) * 4;
    if (flow->reason != TS_KEPT)
        return 0; /* it is on its way to Python, and so is all that follows */
    if (flow->phase == TS_LAST_ACK && tcp[13] == TS_RST) {
        segment.size = end - at - 20;
        if (ends_last_ack(flow, tcp, segment.size) &&
            check_metadata(fast, data, frame, at, end, family, ip, &segment)) {
            flow->segments_in++;
            fast->segments_fast_in++;
            ts_brief_end(fast, flow);
            return 1;
        }
    }
    if (header != 32 || at + header > end || ts_get32(tcp + 20) != NOP_NOP_TIMESTAMP ||
        (tcp[13] & ~(TS_PSH | TS_FIN)) != TS_ACK || tcp[12] & 0x0f)
        goto uncommon;
    segment.payload = tcp + header;
    segment.size = end - at - header;
    segment.seq = ts_get32(tcp + 4);
    segment.ack = ts_get32(tcp + 8);
    segment.window = ts_get16(tcp + 14);
    segment.stamp = ts_get32(tcp + 24);
    segment.echo = ts_get32(tcp + 28);
    if (!check_metadata(fast, data, frame, at, end, family, ip, &segment) ||
        !is_common(fast, flow, &segment) || !suits_phase(flow, &segment, tcp[13] & TS_FIN))
        goto uncommon;
    if (flow->phase == TS_SYN_RECEIVED) {
        ts_brief_established(fast, flow, segment.window << flow->snd_shift, segment.seq, segment.ack, now);
        if (flow->reason != TS_KEPT)
            return 0;
    }
    take(fast, flow, &segment, now);
    if (tcp[13] & TS_FIN)
        ts_brief_finished(flow);
    if (flow->phase == TS_LAST_ACK && flow->snd_una == flow->snd_nxt)
        ts_brief_end(fast, flow);
    return 1;
uncommon:
    ts_flow_return(fast, flow, TS_FRAME);
    return 0;
}

void ts_flow_want(struct ts_fast *fast, struct ts_flow *flow, uint32_t interest)
{
    struct epoll_event event;

    if (interest == flow->interest)
        return;
    flow->interest = interest;
    memset(&event, 0, sizeof event);
    event.events = interest;
    event.data.fd = flow->fd;
    if (epoll_ctl(fast->epoll_fd, EPOLL_CTL_MOD, flow->fd, &event)) {
        flow->socket_errno = errno;
        ts_flow_return(fast, flow, TS_SOCKET_ERROR);
    }
}

/* The reader has taken `count` bytes. */
void ts_flow_consumed(struct ts_fast *fast, struct ts_flow *flow, uint32_t count)
{
    uint32_t kept = flow->in.length < count ? flow->in.length : count, i = 0;

    fast->receive_free += count;
    flow->bytes_up += count;
    if (kept)
        ts_chain_release(fast, &flow->in, &fast->keep_free, kept);
    count -= kept;
    flow->borrowed_bytes -= count;
    while (count && count >= flow->borrowed_length[i])
        count -= flow->borrowed_length[i++];
    if (i) {
        flow->borrowed_count -= i;
        memmove(flow->borrowed, flow->borrowed + i, flow->borrowed_count * sizeof *flow->borrowed);
        memmove(flow->borrowed_length, flow->borrowed_length + i,
                flow->borrowed_count * sizeof *flow->borrowed_length);
    }
    if (count) {
        flow->borrowed[0] += count;
        flow->borrowed_length[0] -= count;
    }
    if (!flow->is_marked && ts_flow_update_due(fast, flow))
        ts_fast_mark(fast, flow);
}

void ts_flow_write(struct ts_fast *fast, struct ts_flow *flow)
{
    struct iovec views[TS_FAST_IOV];
    struct msghdr message;
    uint32_t i, readable = ts_flow_readable(flow);
    int count;
    ssize_t done;

    if (!readable) {
        ts_flow_want(fast, flow, flow->interest & ~(uint32_t)EPOLLOUT);
        return;
    }
    count = ts_chain_views(&flow->in, 0, flow->in.length, views, TS_FAST_IOV);
    for (i = 0; i < flow->borrowed_count && count < TS_FAST_IOV; i++) {
        views[count].iov_base = (void *)(uintptr_t)flow->borrowed[i];
        views[count++].iov_len = flow->borrowed_length[i];
    }
    memset(&message, 0, sizeof message);
    message.msg_iov = views;
    message.msg_iovlen = (size_t)count;
    done = sendmsg(flow->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            ts_flow_want(fast, flow, flow->interest | EPOLLOUT);
            return;
        }
        flow->socket_errno = errno;
        ts_flow_return(fast, flow, TS_WRITE_ERROR);
        return;
    }
    ts_flow_consumed(fast, flow, (uint32_t)done);
    if ((uint32_t)done < readable)
        ts_flow_want(fast, flow, flow->interest | EPOLLOUT);
    else
        ts_flow_want(fast, flow, flow->interest & ~(uint32_t)EPOLLOUT);
}

void ts_flow_settle(struct ts_fast *fast, struct ts_flow *flow)
{
    uint32_t i;

    for (i = 0; i < flow->borrowed_count; i++)
        if (ts_chain_append(fast, &flow->in, &fast->keep_free, flow->borrowed[i],
                            flow->borrowed_length[i])) {
            /* Python takes it from the frames, which are there until the next call. */
            memmove(flow->borrowed, flow->borrowed + i, (flow->borrowed_count - i) * sizeof *flow->borrowed);
            memmove(flow->borrowed_length, flow->borrowed_length + i,
                    (flow->borrowed_count - i) * sizeof *flow->borrowed_length);
            flow->borrowed_count -= i;
            ts_flow_return(fast, flow, TS_MEMORY);
            return;
        } else {
            flow->borrowed_bytes -= flow->borrowed_length[i];
        }
    flow->borrowed_count = 0;
}
