/* Rounds of the fast path: wait, take, decide what is Python's, send. */
#define _GNU_SOURCE
#include "fast_brief.h"
#include "fast_shape.h"
#include "fast_switch.h"
#include "fast_udp.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_WAIT 3600.0 /* seconds: a number of milliseconds that is an int */
#define WIRE_BATCHES 4      /* of frames of wire size in one round: about as many bytes as a TAP's trains have */

static void read_clock(struct ts_fast *fast)
{
    struct timespec time;

    if (fast->fixed_now >= 0) {
        fast->now = fast->fixed_now;
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &time);
    fast->now = (double)time.tv_sec + (double)time.tv_nsec * 1e-9 + fast->clock_offset;
}

/*
 * Begin a call: what the last one left for Python has been dealt with. But for flows that were returned and are
 * still here, as those of a flush may be: they stay reported, the answer is 1, and the call is to do nothing, since
 * what they borrow lies in the buffers of the frames.
 */
static int reset(struct ts_fast *fast)
{
    uint32_t i, kept = 0;

    for (i = 0; i < fast->report_count; i++) {
        struct ts_flow *flow = fast->reports[i];

        flow->report &= TS_REPORT_RETURN;
        flow->is_listed = flow->report != 0;
        if (flow->report)
            fast->reports[kept++] = flow;
    }
    fast->frame_count = fast->ready_count = fast->refused_count = 0;
    fast->report_count = kept;
    fast->refused.length = 0;
    ts_udp_reset(fast);
    return kept != 0;
}

/* The common events of a connection: the socket takes what it can, and gives if there is room again. */
static void progress(struct ts_fast *fast, struct ts_flow *flow)
{
    if (ts_flow_readable(flow) && !(flow->interest & EPOLLOUT))
        ts_flow_write(fast, flow);
    if (flow->reason == TS_KEPT && flow->starved &&
        (!flow->out.length || ts_flow_send_room(fast, flow) >= fast->resume))
        ts_flow_read(fast, flow);
}

/* The next frame of the device; -1: it has none now, or has failed for good. */
static ssize_t read_frame(struct ts_fast *fast, uint8_t *data)
{
    int tries = TS_FAST_FRAMES;

    while (tries--) {
        ssize_t length = fast->sw       ? ts_switch_read(fast, data)
                         : fast->stream ? ts_stream_read(fast->stream, data)
                                        : read(fast->device_fd, data, TS_FAST_FRAME);

        if (length >= 0)
            return length;
        if (errno == EINVAL || errno == EINTR)
            continue; /* EINVAL: the kernel had a packet for which there is no virtio-net header */
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            fast->device_errno = errno;
        break;
    }
    return -1;
}

/* The next frame that has come over the link; -1: there is none now. */
static ssize_t next_frame(struct ts_fast *fast, uint8_t *data)
{
    fast->order++;
    fast->from = 0;
    return fast->shape ? ts_shape_read(fast->shape, data, fast->now) : read_frame(fast, data);
}

void ts_fast_leave(struct ts_fast *fast, uint8_t *data, uint32_t length, uint32_t port, uint64_t order)
{
    uint32_t at = fast->frame_count++;

    for (; at && fast->frames[at - 1].order > order; at--)
        fast->frames[at] = fast->frames[at - 1];
    fast->frames[at].data = data;
    fast->frames[at].length = length;
    fast->frames[at].port = port;
    fast->frames[at].order = order;
}

/* The frame at `data`, one of the buffers, which was read last, is Python's. */
static void keep_frame(struct ts_fast *fast, uint8_t *data, uint32_t length)
{
    ts_fast_leave(fast, data, length, fast->from, fast->order);
}

/* One batch of what has come; 1 if there may be more. */
static int read_batch(struct ts_fast *fast)
{
    uint32_t taken = 0, limit = fast->burst, i;
    int is_full;

    if (limit < fast->burst_minimum)
        limit = fast->burst_minimum;
    while (taken + fast->frame_count < limit) {
        uint8_t *data = fast->buffers + (size_t)(taken + fast->frame_count) * TS_FAST_FRAME;
        ssize_t length = next_frame(fast, data);

        if (length < 0)
            break;
        fast->frames_in++;
        /* One that was cut off does not hold what its IP header says, and is not taken. */
        if (!fast->from && (ts_fast_receive(fast, data, (uint32_t)length, fast->now) ||
                            ts_udp_receive(fast, data, (uint32_t)length))) {
            fast->frames_fast++;
            taken++;
            continue;
        }
        keep_frame(fast, data, (uint32_t)length);
    }
    is_full = taken + fast->frame_count >= limit; /* more, if fragments of earlier batches are Python's */
    if (!is_full)
        fast->burst = limit > 1 ? limit >> 1 : 1;
    else if (limit < TS_FAST_FRAMES)
        fast->burst = 2 * limit < TS_FAST_FRAMES ? 2 * limit : TS_FAST_FRAMES;
    ts_udp_send(fast);
    for (i = 0; i < fast->marked_count; i++) {
        struct ts_flow *flow = fast->marked[i];

        if (flow->reason != TS_KEPT)
            continue; /* Python makes the progress that is noted */
        if (flow->is_notified)
            progress(fast, flow);
        ts_brief_shut(fast, flow);
        flow->is_notified = 0;
    }
    for (i = 0; i < fast->marked_count; i++)
        if (fast->marked[i]->borrowed_count && fast->marked[i]->reason == TS_KEPT)
            ts_flow_settle(fast, fast->marked[i]);
    return is_full;
}

static int is_for_python(const struct ts_fast *fast)
{
    uint32_t i;

    if (fast->frame_count || fast->ready_count || fast->udp->datagram_count || fast->refused_count ||
        fast->device_errno || (fast->sw && fast->sw->ended))
        return 1;
    for (i = 0; i < fast->report_count; i++)
        if (fast->reports[i]->report & ~(uint32_t)TS_REPORT_TIMER)
            return 1;
    return 0;
}

/* What has come over the link, as much as is served in one round. */
static void read_link(struct ts_fast *fast)
{
    uint32_t batches = fast->sw || fast->stream || fast->shape ? WIRE_BATCHES : 1;

    while (batches-- && read_batch(fast) && !is_for_python(fast))
        ;
}

/* What the device has: for the flows, or on its way through the shaping. */
static void read_device(struct ts_fast *fast)
{
    uint32_t frames = TS_SHAPE_READ;
    ssize_t length;

    if (fast->sw)
        ts_switch_poll(fast->sw);
    if (fast->stream)
        fast->stream->is_drained = 0;
    if (!fast->shape) {
        read_link(fast);
        return;
    }
    while (frames-- && fast->frame_count < TS_FAST_FRAMES / 2 && ts_shape_is_served(fast->shape)) {
        uint8_t *data = fast->buffers + (size_t)fast->frame_count * TS_FAST_FRAME;

        fast->order++;
        fast->from = 0;
        length = read_frame(fast, data);
        if (length < 0)
            break;
        if (fast->from)
            keep_frame(fast, data, (uint32_t)length); /* Python sends it up, if it may pass */
        else
            ts_shape_send_up(fast->shape, data, (uint32_t)length, fast->now);
    }
}

/* What has left the shaping; 0: nothing has. */
static int serve_shape(struct ts_fast *fast)
{
    if (!fast->shape || ts_shape_deadline(fast->shape) > fast->now)
        return 0;
    ts_shape_depart(fast);
    read_link(fast);
    return 1;
}

/* Frames that have been received and not been looked at: the descriptor does not tell of them. */
static int has_frames(const struct ts_fast *fast)
{
    if (fast->sw)
        return ts_switch_has_frame(fast->sw);
    return fast->stream && ts_stream_has_frame(fast->stream);
}

static void serve_socket(struct ts_fast *fast, struct ts_flow *flow, uint32_t events)
{
    if (flow->phase == TS_CONNECTING) {
        ts_brief_connected(fast, flow);
        return;
    }
    if (events & EPOLLIN)
        ts_flow_read(fast, flow);
    if (events & EPOLLOUT && flow->reason == TS_KEPT)
        ts_flow_write(fast, flow);
    if (events & (EPOLLERR | EPOLLHUP) && !(events & EPOLLIN) && flow->reason == TS_KEPT)
        ts_flow_return(fast, flow, TS_HANG_UP);
}

static void delayed_acks(struct ts_fast *fast)
{
    while (fast->ack_oldest && fast->ack_oldest->ack_deadline <= fast->now) {
        struct ts_flow *flow = fast->ack_oldest;

        ts_flow_disarm_ack(fast, flow);
        flow->ack_now = 1;
        ts_fast_mark(fast, flow);
    }
}

/* What Python must know of the marked flows before they are flushed. */
static void collect_reports(struct ts_fast *fast)
{
    uint32_t i;

    for (i = 0; i < fast->marked_count; i++) {
        struct ts_flow *flow = fast->marked[i];

        if (flow->reason != TS_KEPT)
            continue;
        if (flow->is_brief) {
            ts_brief_collect(fast, flow);
            continue;
        }
        if (flow->acked && flow->was_limited)
            ts_flow_report(fast, flow, TS_REPORT_ACKS);
        if (ts_flow_was_idle(flow, fast->now))
            ts_flow_report(fast, flow, TS_REPORT_IDLE);
        if (flow->sizing_due <= fast->now)
            ts_flow_report(fast, flow, TS_REPORT_SIZE);
    }
}

static int wait_for_events(struct ts_fast *fast, struct epoll_event *events, double timeout)
{
#ifdef SYS_epoll_pwait2
    static int is_missing; /* kernels before 5.11 */
    struct timespec time;
    long count;

    if (timeout > 0 && !is_missing) {
        time.tv_sec = (time_t)timeout;
        time.tv_nsec = (long)((timeout - (double)time.tv_sec) * 1e9);
        count = syscall(SYS_epoll_pwait2, fast->epoll_fd, events, TS_FAST_EVENTS, &time, NULL, 0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) /* EPERM: a filter of system calls */
            return (int)count;
        is_missing = 1;
    }
#endif
    return epoll_wait(fast->epoll_fd, events, TS_FAST_EVENTS, timeout > 0.0005 ? (int)(timeout * 1e3 + 0.5) : 0);
}

/* Up to what Python decides. 1: something happened, -1: epoll failed (errno), 0: nothing was ready. */
static int input(struct ts_fast *fast, double timeout)
{
    struct epoll_event events[TS_FAST_EVENTS];
    int is_behind = has_frames(fast), is_drained = !is_behind, is_busy, count, i;

    count = wait_for_events(fast, events, is_behind ? 0 : timeout < LONGEST_WAIT ? timeout : LONGEST_WAIT);
    if (count < 0) {
        if (errno != EINTR)
            return -1;
        count = 0;
    }
    read_clock(fast);
    if (is_behind)
        read_device(fast);
    for (i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        uint32_t bits = events[i].events;
        struct ts_flow *flow = fd >= 0 && fd < fast->fd_capacity ? fast->by_fd[fd] : NULL;

        if (fd == fast->device_fd) {
            is_drained = 0;
            if (bits & ~(uint32_t)EPOLLOUT && !is_behind)
                read_device(fast);
            bits &= EPOLLOUT; /* what there is to read is never Python's: it would come out of order */
        }
        if (flow && flow->reason == TS_KEPT) {
            serve_socket(fast, flow, bits);
        } else if (fd == fast->device_fd ? bits : !ts_udp_serve(fast, fd, &bits)) {
            fast->ready[fast->ready_count].fd = fd;
            fast->ready[fast->ready_count++].events = bits;
        }
    }
    if (count && is_drained && fast->burst > 1)
        fast->burst >>= 1; /* there was no more than what was read: so it goes on with requests, one by one */
    is_busy = serve_shape(fast) || count || is_behind;
    ts_udp_expire(fast);
    ts_brief_expire(fast);
    delayed_acks(fast);
    collect_reports(fast);
    is_busy = is_busy || fast->marked_count;
    fast->rounds += (uint32_t)is_busy;
    return is_busy;
}

int ts_fast_input(struct ts_fast *fast, double timeout)
{
    if (reset(fast)) {
        read_clock(fast);
        return 1;
    }
    return input(fast, timeout);
}

void ts_fast_flush(struct ts_fast *fast)
{
    uint32_t i;
    int error;

    for (i = 0; i < fast->marked_count; i++) {
        struct ts_flow *flow = fast->marked[i];

        flow->is_marked = 0;
        if (flow->reason == TS_KEPT && !(flow->phase && ts_brief_flush(fast, flow, fast->now)))
            ts_flow_flush(fast, flow, fast->now);
    }
    fast->marked_count = 0;
    ts_brief_close_descriptors(fast);
    if (fast->shape)
        ts_shape_depart(fast);
    if (fast->sw)
        ts_switch_flush(fast->sw);
    if (fast->stream && (error = ts_stream_flush(fast->stream)))
        fast->device_errno = error;
}

/*
 * Rounds in a row, until there is something for Python (1; `ts_fast_flush` is still to be called), nothing has
 * been ready for `linger` seconds (0), `deadline` has come or `rounds` were done and there was always something
 * ready (TS_FAST_BUSY), or epoll failed (-1).
 */
int ts_fast_run(struct ts_fast *fast, double linger, double deadline, uint32_t rounds)
{
    int is_done = reset(fast);

    read_clock(fast);
    if (is_done)
        return 1;
    while (rounds--) {
        double timeout = linger, due = ts_fast_deadline(fast);
        int done;

        if (deadline < due)
            due = deadline;
        if (due - fast->now < timeout)
            timeout = due - fast->now;
        done = input(fast, timeout);
        if (done < 0)
            return -1;
        if (is_for_python(fast))
            return 1;
        ts_fast_flush(fast);
        if (is_for_python(fast))
            return 1;
        if (!done)
            return 0;
        if (fast->now >= deadline)
            break;
    }
    return TS_FAST_BUSY;
}

double ts_fast_deadline(const struct ts_fast *fast)
{
    double deadline = fast->ack_oldest ? fast->ack_oldest->ack_deadline : TS_NEVER;
    double leaves = fast->shape ? ts_shape_deadline(fast->shape) : TS_NEVER, left = ts_udp_deadline(fast);

    if (leaves < deadline)
        deadline = leaves;
    if (fast->briefs->due < deadline)
        deadline = fast->briefs->due;
    return left < deadline ? left : deadline;
}
