/* Brief connections: opened, ended and looked after; see fast_brief.h. What they carry is that of all flows. */
#define _GNU_SOURCE
#include "fast_brief.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER 20
#define SYN_OPTIONS 20 /* MSS, SACK-permitted, timestamps, window scale */
#define MOST_SHIFT 14
#define GRANULARITY 0.001 /* of the clock behind timestamps, seconds */

enum { END = 0, NOP, MSS, WINDOW_SCALE, SACK_PERMITTED, TIMESTAMPS = 8 };

/* What the options of a SYN say. */
struct offer {
    uint32_t mss, shift, stamp;
    uint32_t seen; /* a bit for each kind */
};

int ts_brief_init(struct ts_fast *fast)
{
    fast->briefs = calloc(1, sizeof *fast->briefs);
    if (!fast->briefs)
        return -1;
    fast->briefs->due = TS_NEVER;
    return 0;
}

void ts_brief_free(struct ts_fast *fast)
{
    uint32_t i;

    if (!fast->briefs)
        return;
    ts_brief_close_descriptors(fast);
    for (i = 0; i < TS_BRIEF_DOORS; i++)
        free(fast->briefs->doors[i]);
    free(fast->briefs);
}

void ts_brief_close_descriptors(struct ts_fast *fast)
{
    struct ts_briefs *briefs = fast->briefs;

    while (briefs->closing_count)
        close(briefs->closing[--briefs->closing_count]);
}

/* Timers */

void ts_brief_arm(struct ts_fast *fast, double deadline)
{
    if (deadline < fast->briefs->due)
        fast->briefs->due = deadline;
}

void ts_brief_expire(struct ts_fast *fast)
{
    struct ts_briefs *briefs = fast->briefs;
    struct ts_brief *brief;

    if (fast->now < briefs->due)
        return;
    briefs->due = TS_NEVER;
    for (brief = briefs->oldest; brief; brief = brief->newer) {
        double age = brief->asked_at + briefs->patience;

        if (brief->flow.reason != TS_KEPT)
            continue;
        if (brief->flow.deadline <= fast->now)
            ts_flow_return(fast, &brief->flow, TS_TIMER);
        else if (age <= fast->now)
            ts_flow_return(fast, &brief->flow, TS_AGE);
        else
            ts_brief_arm(fast, brief->flow.deadline < age ? brief->flow.deadline : age);
    }
}

/* Opening */

static int read_options(const uint8_t *at, const uint8_t *end, struct offer *offer)
{
    while (at < end && *at != END) {
        uint32_t kind = *at, length;

        if (kind == NOP) {
            at++;
            continue;
        }
        if (end - at < 2 || at[1] < 2 || at[1] > end - at || kind > TIMESTAMPS || offer->seen >> kind & 1)
            return -1;
        length = at[1];
        offer->seen |= 1u << kind;
        if (kind == MSS && length == 4)
            offer->mss = ts_get16(at + 2);
        else if (kind == WINDOW_SCALE && length == 3)
            offer->shift = at[2];
        else if (kind == TIMESTAMPS && length == 10)
            offer->stamp = ts_get32(at + 2);
        else if (kind != SACK_PERMITTED || length != 2)
            return -1;
        at += length;
    }
    return offer->seen == (1u << MSS | 1u << WINDOW_SCALE | 1u << SACK_PERMITTED | 1u << TIMESTAMPS) &&
                   offer->shift <= MOST_SHIFT
               ? 0
               : -1;
}

static int watch(const struct ts_fast *fast, struct ts_brief *brief, uint32_t interest)
{
    struct epoll_event event;

    memset(&event, 0, sizeof event);
    event.events = interest;
    event.data.fd = brief->flow.fd;
    if (epoll_ctl(fast->epoll_fd, EPOLL_CTL_ADD, brief->flow.fd, &event))
        return -1;
    brief->flow.interest = interest;
    brief->is_watched = 1;
    return 0;
}

/* The destination has answered: SYN-ACK is next (tunstack.tcp.endpoint, `open_passive`). */
static void accept_flow(struct ts_fast *fast, struct ts_brief *brief, double now)
{
    struct ts_flow *flow = &brief->flow;

    flow->phase = TS_SYN_RECEIVED;
    brief->opened_at = now;
    brief->iss = (uint32_t)(uint64_t)(now * 250000) +
                 ts_brief_hash(fast, 0, flow->family, flow->address, flow->ports);
    flow->ts_offset = ts_brief_hash(fast, 1, flow->family, flow->address, flow->ports);
    flow->snd_una = flow->snd_wl2 = brief->iss;
    flow->snd_nxt = brief->iss + 1;
    flow->ts_recent_age = now;
    flow->deadline = now + flow->rto;
    ts_brief_arm(fast, flow->deadline);
    brief->syn_due = 1;
    fast->briefs->past.accepted++;
    ts_fast_mark(fast, flow);
}

/* That of a SYN is never scaled. */
static uint32_t syn_window(const struct ts_flow *flow)
{
    return flow->rcv_buf < 0xffff ? flow->rcv_buf : 0xffff;
}

/* The flow of the SYN whose IP packet is at `ip`, `tcp` within. */
static void set_up(struct ts_brief *brief, const struct ts_door *door, const uint8_t *ip, const uint8_t *tcp,
                   const struct offer *offer, double now)
{
    struct ts_flow *flow = &brief->flow;
    uint32_t seq = ts_get32(tcp + 4);

    *flow = door->model;
    memcpy(flow->ports, tcp, 4);
    flow->remote_port = (uint16_t)ts_get16(tcp);
    flow->is_brief = 1;
    flow->phase = TS_CONNECTING;
    flow->deadline = flow->ack_deadline = TS_NEVER;
    flow->armed = TS_NEVER;
    flow->rcv_nxt = flow->last_ack_sent = seq + 1;
    flow->rcv_adv = seq + 1 + syn_window(flow);
    flow->snd_wnd = flow->snd_max_wnd = ts_get16(tcp + 14);
    flow->snd_wl1 = seq;
    flow->snd_shift = (uint8_t)offer->shift;
    flow->ts_recent = offer->stamp;
    brief->path_mss = door->path_mss;
    brief->asked_at = now;
    brief->established_at = brief->sizing.start = -1;
    brief->sizing.rtt = TS_NEVER;
    brief->syn_length = (uint32_t)(tcp - ip) + HEADER + SYN_OPTIONS;
    memcpy(brief->syn, ip, brief->syn_length);
}

static void link_newest(struct ts_briefs *briefs, struct ts_brief *brief)
{
    brief->older = briefs->newest;
    if (brief->older)
        brief->older->newer = brief;
    else
        briefs->oldest = brief;
    briefs->newest = brief;
    briefs->count++;
    briefs->descriptors++;
}

int ts_brief_open(struct ts_fast *fast, const uint8_t *frame, uint32_t at, uint32_t end, int family,
                  const uint8_t *ip, double now)
{
    struct ts_briefs *briefs = fast->briefs;
    const uint8_t *tcp = frame + at, *addresses = ip + (family == 4 ? 12 : 8);
    struct ts_door *door = ts_door_find(fast, family, addresses, tcp);
    struct offer offer = {0};
    struct ts_brief *brief;
    int fd, is_connected = 0;

    if (!door || (fast->l2 && memcmp(frame + 6, door->model.mac, 6)) || tcp[12] != (HEADER + SYN_OPTIONS) << 2 ||
        end - at != HEADER + SYN_OPTIONS || !ts_get16(tcp + 14))
        return 0;
    if (briefs->count >= TS_BRIEF_MOST || briefs->descriptors >= briefs->most ||
        ts_brief_is_claimed(fast, family, addresses, tcp))
        return 0;
    if (read_options(tcp + HEADER, tcp + HEADER + SYN_OPTIONS, &offer) || offer.mss != door->guest_mss)
        return 0;
    brief = calloc(1, sizeof *brief);
    if (!brief)
        return 0;
    set_up(brief, door, ip, tcp, &offer, now);
    fd = brief->flow.fd = ts_door_dial(door, &is_connected);
    if (fd < 0 || (!is_connected && watch(fast, brief, EPOLLOUT)) || ts_fast_insert(fast, &brief->flow)) {
        if (fd >= 0)
            close(fd);
        free(brief);
        return 0;
    }
    link_newest(briefs, brief);
    door->used_at = now;
    briefs->past.dials++;
    ts_brief_arm(fast, now + briefs->patience);
    if (is_connected)
        accept_flow(fast, brief, now);
    return 1;
}

void ts_brief_connected(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_brief *brief = ts_brief_of(flow);
    const struct ts_door *door = ts_door_find(fast, flow->family, flow->address, flow->ports);
    int error = 0;
    socklen_t length = sizeof error;

    if (getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length))
        error = errno;
    if (error || !door) { /* without its door nobody knows whether it has met itself */
        flow->socket_errno = error;
        ts_flow_return(fast, flow, error ? TS_SOCKET_ERROR : TS_HANG_UP);
        return;
    }
    if (ts_door_meets_itself(flow->fd, door)) {
        ts_door_linger_zero(flow->fd);
        flow->socket_errno = ECONNREFUSED;
        ts_flow_return(fast, flow, TS_SOCKET_ERROR);
        return;
    }
    epoll_ctl(fast->epoll_fd, EPOLL_CTL_DEL, flow->fd, NULL);
    brief->is_watched = 0;
    flow->interest = 0;
    accept_flow(fast, brief, fast->now);
}

static void emit_syn_ack(struct ts_fast *fast, struct ts_brief *brief, double now)
{
    struct ts_flow *flow = &brief->flow;
    uint8_t head[TS_FAST_VNET + TS_FAST_HEAD + HEADER + SYN_OPTIONS];
    uint8_t *tcp = ts_flow_head(flow, head, HEADER + SYN_OPTIONS, 0, TS_SYN | TS_ACK, brief->iss, syn_window(flow));
    uint8_t *options = tcp + HEADER;
    struct iovec view;

    ts_put32(options, (uint32_t)MSS << 24 | 4 << 16 | brief->path_mss);
    ts_put32(options + 4, (uint32_t)SACK_PERMITTED << 24 | 2 << 16 | TIMESTAMPS << 8 | 10);
    ts_put32(options + 8, ts_flow_stamp(flow, now));
    ts_put32(options + 12, flow->ts_recent);
    ts_put32(options + 16, (uint32_t)NOP << 24 | WINDOW_SCALE << 16 | 3 << 8 | flow->rcv_shift);
    flow->segments_out++;
    fast->segments_fast_out++;
    flow->last_ack_sent = flow->rcv_nxt;
    view.iov_base = head;
    view.iov_len = TS_FAST_VNET + flow->head_length + HEADER + SYN_OPTIONS;
    ts_fast_transmit(fast, &view, 1);
}

int ts_brief_flush(struct ts_fast *fast, struct ts_flow *flow, double now)
{
    struct ts_brief *brief = ts_brief_of(flow);

    if (flow->phase != TS_SYN_RECEIVED && flow->phase != TS_CONNECTING)
        return 0;
    if (brief->syn_due) {
        brief->syn_due = 0;
        emit_syn_ack(fast, brief, now);
    }
    return 1;
}

void ts_brief_established(struct ts_fast *fast, struct ts_flow *flow, uint32_t window, uint32_t seq,
                          uint32_t ack, double now)
{
    struct ts_brief *brief = ts_brief_of(flow);

    flow->phase = TS_ESTABLISHED;
    brief->established_at = now;
    flow->snd_una = ack;
    flow->snd_wnd = window;
    if (window > flow->snd_max_wnd)
        flow->snd_max_wnd = window;
    flow->snd_wl1 = seq;
    flow->snd_wl2 = ack;
    ts_flow_sample(flow, now - brief->opened_at, now);
    flow->rtt_sample = -1; /* it is none of a batch */
    flow->timer = TS_TIMER_IDLE;
    flow->rto_at = flow->deadline = TS_NEVER;
    if (watch(fast, brief, EPOLLIN)) {
        flow->socket_errno = errno;
        ts_flow_return(fast, flow, TS_SOCKET_ERROR);
    }
}

/* Ending */

void ts_brief_finished(struct ts_flow *flow)
{
    flow->phase = TS_CLOSE_WAIT;
    flow->rcv_nxt++;
    flow->ack_now = 1;
    flow->is_notified = 1;
}

void ts_brief_shut(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_brief *brief = ts_brief_of(flow);

    if (flow->phase != TS_CLOSE_WAIT || brief->is_shut || flow->reason != TS_KEPT)
        return;
    if (ts_flow_readable(flow)) {
        ts_flow_return(fast, flow, TS_BEHIND);
        return;
    }
    shutdown(flow->fd, SHUT_WR); /* if it was reset meanwhile, reading finds out */
    brief->is_shut = 1;
}

void ts_brief_end_of_file(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_briefs *briefs = fast->briefs;
    struct ts_brief *brief = ts_brief_of(flow);

    if (flow->phase != TS_CLOSE_WAIT || !brief->is_shut || briefs->closing_count == TS_BRIEF_MOST) {
        ts_flow_return(fast, flow, TS_END_OF_FILE);
        return;
    }
    briefs->closing[briefs->closing_count++] = flow->fd;
    fast->by_fd[flow->fd] = NULL;
    flow->fd = -1;
    flow->starved = 0;
    brief->is_watched = 0;
    flow->fin_queued = 1;
    briefs->descriptors--;
    ts_fast_mark(fast, flow);
}

void ts_brief_unlink(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_briefs *briefs = fast->briefs;
    struct ts_brief *brief = ts_brief_of(flow);

    if (brief->older)
        brief->older->newer = brief->newer;
    else
        briefs->oldest = brief->newer;
    if (brief->newer)
        brief->newer->older = brief->older;
    else
        briefs->newest = brief->older;
    if (brief->is_watched) /* whoever has it next watches it anew */
        epoll_ctl(fast->epoll_fd, EPOLL_CTL_DEL, flow->fd, NULL);
    briefs->count--;
    briefs->descriptors -= flow->fd >= 0;
    if (!briefs->count)
        briefs->due = TS_NEVER;
}

void ts_brief_end(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_brief_past *past = &fast->briefs->past;

    past->ended++;
    past->bytes_in += flow->bytes_in;
    past->bytes_out += flow->bytes_out;
    past->segments_in += flow->segments_in;
    past->segments_out += flow->segments_out;
    ts_fast_remove(fast, flow);
    ts_flow_free(fast, flow);
}

/* `Endpoint.round_trip`: what a timestamp's echo took, else the least that was measured. */
static double round_trip(const struct ts_brief *brief)
{
    const struct ts_flow *flow = &brief->flow;

    if (flow->ts_echo) {
        double age = (ts_flow_stamp(flow, flow->ts_recent_age) - flow->ts_echo) / 1000.0;

        if (age <= flow->ts_recent_age - brief->opened_at + GRANULARITY)
            return age;
    }
    return flow->min_rtt;
}

/* The end of a round of `tcp.right_sizing`. -1: the buffer is to grow, which is Python's, and nothing is done. */
static int look(const struct ts_briefs *briefs, struct ts_brief *brief, double now)
{
    struct ts_sizing *sizing = &brief->sizing, next = *sizing;
    struct ts_flow *flow = &brief->flow;
    double elapsed = now - sizing->start, known, rising, sample;

    next.start = now;
    next.received = flow->bytes_in;
    next.consumed = flow->bytes_in - ts_flow_readable(flow);
    if (sizing->start >= 0 && elapsed > 0) {
        sample = round_trip(brief);
        if (sample > briefs->sizing_longest)
            sample = briefs->sizing_longest;
        if (next.received != sizing->received &&
            (sample <= sizing->rtt || now - sizing->rtt_at >= briefs->sizing_memory)) {
            next.rtt = sample;
            next.rtt_at = now;
        }
        next.rate = (double)(next.consumed - sizing->consumed) / elapsed;
        rising = next.rate - sizing->rate < next.rate / 2 ? next.rate - sizing->rate : next.rate / 2;
        if (rising < 0)
            rising = 0;
        known = next.rtt > briefs->sizing_shortest ? next.rtt : briefs->sizing_shortest;
        if (next.rtt != TS_NEVER && 2 * (next.rate + 2 * rising) * known >= flow->rcv_buf)
            return -1;
    }
    *sizing = next;
    flow->sizing_due = now + briefs->sizing_round;
    if (next.rtt != TS_NEVER && next.rtt > briefs->sizing_round)
        flow->sizing_due = now + next.rtt;
    return 0;
}

void ts_brief_collect(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_brief *brief = ts_brief_of(flow);

    if (flow->phase == TS_CONNECTING || flow->phase == TS_SYN_RECEIVED)
        return;
    if ((flow->acked && flow->was_limited) || ts_flow_was_idle(flow, fast->now) ||
        (flow->sizing_due <= fast->now && look(fast->briefs, brief, fast->now)))
        ts_flow_return(fast, flow, TS_ADVICE);
}
