/*
 * The fast path: established TCP flows between a device and host sockets, in the common case.
 *
 * Theory of operation. A flow is offered: Python fills in a `struct ts_flow` and from then on only this code
 * writes it. In the common case - data in order, acknowledgements of new data, window updates, data out
 * within cwnd and the peer's window - it does what `tunstack.tcp` would have done, to the bit: tests hold the
 * two together. Everything else ends in `ts_fast.returned`: the flow is frozen as it is, and Python takes it
 * back. The frame that was not common is not consumed; it goes to Python, as do all frames without a flow.
 *
 * A round is `ts_fast_input` (wait, read the device, hand payload to sockets, read sockets), then whatever
 * Python has to decide (`reports`: congestion control, receive buffer sizes, returned flows, frames,
 * descriptors), then `ts_fast_flush` (one acknowledgement for a batch; data where there is data).
 * `ts_fast_run` does rounds in a row for as long as there is nothing for Python, and lingers a little when
 * nothing is ready, since what comes next usually comes soon.
 *
 * Connections that the guest opens and closes soon are opened and closed here, too; see fast_brief.h.
 *
 * Bounds: pages and bytes for readers are taken from budgets that Python sets before each call; a batch of
 * frames, TS_FAST_EVENTS descriptors in a round, and the rounds that Python asks for in a call; records of sent
 * segments by TS_FAST_RECORDS for each flow, those that it came with, and one that an acknowledgement has cut.
 * Nothing blocks but the wait.
 *
 * A returned flow must be removed before the next round: until then `ts_fast_input` and `ts_fast_run` do nothing
 * but report it.
 */
#ifndef TUNSTACK_FASTPATH_H
#define TUNSTACK_FASTPATH_H

#include "native.h"

#include <math.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#define TS_FAST_FRAMES 16
#define TS_FAST_EVENTS 64
#define TS_FAST_RECORDS 1024
#define TS_FAST_PAGE 16384
#define TS_FAST_VNET 10
#define TS_FAST_FRAME (TS_FAST_VNET + 65535 + 14 + 1)
#define TS_FAST_HEAD (14 + 40)
#define TS_FAST_IOV 64
#define TS_UDP_ASSEMBLIES 16 /* of fast_udp.h */
#define TS_UDP_PIECES 64
/* Frames that may be left for Python in a call. */
#define TS_FAST_LEFT (TS_FAST_FRAMES + TS_UDP_ASSEMBLIES * TS_UDP_PIECES)

/* What `ts_flow.report` says. */
#define TS_REPORT_ACKS 1   /* congestion control: `acked` and so on */
#define TS_REPORT_IDLE 2   /* congestion control: nothing was sent for an RTO */
#define TS_REPORT_SIZE 4   /* the receive buffer's round is over */
#define TS_REPORT_RETURN 8 /* the flow is frozen; see `reason` */
#define TS_REPORT_TIMER 16 /* `deadline` is earlier than `armed` */

/* Why a flow is returned. */
enum ts_reason {
    TS_KEPT = 0,
    TS_FRAME,        /* a segment that is not common */
    TS_END_OF_FILE,  /* the socket's other side has finished */
    TS_SOCKET_ERROR, /* `socket_errno`; there is nothing more to read */
    TS_WRITE_ERROR,  /* the same, but there may be */
    TS_HANG_UP,      /* an error or a hang-up without anything to read */
    TS_MEMORY,       /* a budget is exhausted */
    TS_PERSIST,      /* something to send, and the peer's window is in the way */
    /* of brief flows alone; see fast_brief.h */
    TS_TIMER,  /* a timer is due */
    TS_AGE,    /* it is not brief */
    TS_ADVICE, /* there is something that only Python decides */
    TS_BEHIND, /* the guest has finished, and the socket has not taken everything */
    TS_REASONS
};

/* What a flow is; all but brief ones are established. */
enum ts_phase { TS_ESTABLISHED = 0, TS_CONNECTING, TS_SYN_RECEIVED, TS_CLOSE_WAIT, TS_LAST_ACK };

enum ts_timer { TS_TIMER_IDLE = 0, TS_TIMER_RTO, TS_TIMER_TLP };

struct ts_page {
    struct ts_page *next;
    uint8_t data[TS_FAST_PAGE];
};

/* A queue of bytes; `head` is the offset of the first in the first page. */
struct ts_chain {
    struct ts_page *first, *last;
    uint32_t head;
    uint32_t length;
};

/* What one super-segment sent, and when. */
struct ts_sent {
    struct ts_sent *next;
    double at;
    uint32_t seq, end;
};

/* One flow. Names are those of tunstack.tcp; times in seconds, `HUGE_VAL` for never. */
struct ts_flow {
    /* key: as in frames from the guest */
    uint8_t family; /* 4 or 6 */
    uint8_t mac[6]; /* of the guest, on a link that has MACs */
    uint8_t address[32];
    uint8_t ports[4];
    /* output */
    uint8_t head[TS_FAST_HEAD];
    uint32_t head_length; /* link and IP header */
    uint32_t link_length;
    uint32_t pseudo_sum;
    uint16_t local_port, remote_port;

    /* sequence variables and windows */
    uint32_t snd_una, snd_nxt, snd_wnd, snd_max_wnd, snd_wl1, snd_wl2;
    uint32_t rcv_nxt, rcv_adv, rcv_buf, rcv_initial, last_ack_sent;
    uint32_t cwnd, mss, rcv_mss, ack_pending;
    uint32_t ts_recent, ts_echo, ts_offset, rack_end;
    uint8_t snd_shift, rcv_shift, ecn;
    uint8_t ack_now;
    double ts_recent_age, rack_sent_at, rack_rtt, heard_at, last_sent_at, sizing_due;
    uint64_t bytes_in, bytes_out, segments_in, segments_out;

    /* round trips and timers */
    double srtt, rttvar, rto, min_rtt, smallest_at; /* srtt < 0: none yet */
    uint32_t backoff;
    double rto_at, deadline, ack_deadline, probe_deadline, armed;
    int32_t timer;
    uint8_t probe_due, idle_told;

    /* its beginning and its end */
    uint8_t is_brief, phase, fin_queued;

    /* the batch */
    uint32_t acked, advanced, delivered;
    double rtt_sample;  /* < 0: none */
    double unlimited_at; /* the last acknowledgement that congestion control was not told of; < 0: none */
    uint8_t was_limited;
    uint32_t report;
    int32_t reason;
    int32_t socket_errno;

    /* the socket */
    int32_t fd; /* -1: a brief flow's that has finished */
    uint32_t interest; /* EPOLLIN, EPOLLOUT */
    uint32_t read_size;
    uint8_t starved;
    uint64_t bytes_up, bytes_down;

    /* limits */
    uint32_t train; /* bytes of the largest super-segment */
    uint32_t send_floor, send_most;

    /* queues: only this code touches them */
    struct ts_chain out, in;
    struct ts_sent *sent_first, *sent_last;
    uint32_t sent_count;
    const uint8_t *borrowed[TS_FAST_FRAMES];
    uint32_t borrowed_length[TS_FAST_FRAMES];
    uint32_t borrowed_count, borrowed_bytes;
    uint8_t is_marked, is_listed, is_waiting, is_notified;
    int32_t index;
    uint64_t hash;
    struct ts_flow *ack_older, *ack_newer;
};

/* A frame that Python is to handle: the virtio-net header comes first. */
struct ts_frame {
    uint8_t *data;
    uint32_t length;
    uint32_t port; /* of the switch, if only Python knows what it is; else 0 */
    uint64_t order; /* in which they were read */
};

struct ts_ready {
    int32_t fd;
    uint32_t events;
};

struct ts_briefs; /* fast_brief.h */
struct ts_udp;    /* fast_udp.h */
struct ts_stream; /* fast_stream.h */
struct ts_switch; /* fast_switch.h */
struct ts_shape;  /* fast_shape.h */

struct ts_fast {
    struct ts_udp *udp;
    struct ts_briefs *briefs;
    struct ts_stream *stream; /* the device, if it is a stream socket; else NULL */
    struct ts_switch *sw;     /* the device, if it is a switch; else NULL */
    struct ts_shape *shape;   /* between it and everything else, if the link is shaped; else NULL */

    /* set by Python */
    int32_t epoll_fd, device_fd;
    uint8_t l2, hold; /* hold: the device is behind, nothing may be written past what waits */
    uint8_t untold;   /* the link cannot tell of offloads: a checksum may be the pseudo-header's sum alone */
    uint8_t mac[6];
    double clock_offset; /* added to CLOCK_MONOTONIC, unless `fixed_now` >= 0 */
    double fixed_now;
    double delayed_ack;
    int64_t send_free, keep_free; /* bytes left: pages of out queues, pages of in queues */
    int64_t receive_free;         /* bytes left for what sockets have not taken */
    int64_t send_reserve;         /* of send_free: what flows over short paths leave alone */
    double short_path;            /* seconds */
    uint32_t read_minimum, read_maximum, resume, receive_share;
    uint32_t burst_minimum; /* frames of a batch at the least: 1 saves a read that finds nothing */

    /* results of a call */
    double now;
    uint32_t frame_count, ready_count, report_count, refused_count;
    struct ts_frame frames[TS_FAST_LEFT];
    struct ts_ready ready[TS_FAST_EVENTS];
    struct ts_flow **reports;
    struct ts_frame refused; /* packets that the device did not take, each behind its length (4 bytes) */
    int32_t device_errno; /* the device failed for good */

    /* counters */
    uint64_t rounds, frames_in, frames_fast, segments_fast_in, segments_fast_out, returned[TS_REASONS];
    uint64_t write_errors;
    uint32_t flow_count;

    /* inside */
    struct ts_flow **flows; /* by hash, open addressing; TS_TOMB for what was removed */
    uint32_t capacity, used;
    uint64_t seed;
    struct ts_flow **by_fd;
    int32_t fd_capacity;
    struct ts_flow **marked;
    uint32_t marked_count, list_capacity;
    struct ts_flow *ack_oldest, *ack_newest;
    struct ts_page *pages;
    struct ts_sent *records;
    uint32_t spare_pages, spare_records;
    uint32_t from;  /* the port of the frame that was read last, as in `struct ts_frame` */
    uint64_t order; /* and its place in the order */
    uint32_t burst; /* frames of the next batch at the most; it grows while batches are full */
    uint32_t refused_capacity;
    uint8_t *buffers; /* TS_FAST_FRAMES of TS_FAST_FRAME bytes */
};

/* NULL without memory. */
struct ts_fast *ts_fast_new(uint64_t seed);
void ts_fast_free(struct ts_fast *fast);

/* A flow with everything 0, to be filled in and offered; NULL without memory. */
struct ts_flow *ts_flow_new(void);
/* 0, or -1: the key or the descriptor is taken, the fields cannot be, or there is no memory. */
int ts_fast_offer(struct ts_fast *fast, struct ts_flow *flow);
/* Forget the flow, brief or not, which stays readable until `ts_flow_free`. */
void ts_fast_remove(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_free(struct ts_fast *fast, struct ts_flow *flow);

/* The flow of this key, as it stands in a packet from the guest, or NULL. */
struct ts_flow *ts_fast_find(const struct ts_fast *fast, const uint8_t *addresses, int family,
                             const uint8_t *ports);

/* Queues across the border. `ts_flow_fill`: bytes into the out (0) or in (1) queue; -1 without memory. */
int ts_flow_fill(struct ts_fast *fast, struct ts_flow *flow, int in, const uint8_t *data, uint32_t length);
/* Copy a queue to `data`, which has room for `length`: out (0), or in and what is borrowed (1). */
int ts_flow_copy(const struct ts_flow *flow, int in, uint8_t *data, uint32_t length);
/* Forget both queues and the records. */
void ts_flow_clear(struct ts_fast *fast, struct ts_flow *flow);
uint32_t ts_flow_readable(const struct ts_flow *flow);
/* A record at the end of those that are in flight; -1 without memory. */
int ts_flow_sent(struct ts_fast *fast, struct ts_flow *flow, uint32_t seq, uint32_t end, double at);

/* One round up to what Python decides, one flush, and rounds in a row; see above. */
int ts_fast_input(struct ts_fast *fast, double timeout);
void ts_fast_flush(struct ts_fast *fast);
#define TS_FAST_BUSY 2
int ts_fast_run(struct ts_fast *fast, double linger, double deadline, uint32_t rounds);
/* When `ts_fast_run` wants to be called though nothing is ready. */
double ts_fast_deadline(const struct ts_fast *fast);
/* Flush `flow` in the next `ts_fast_flush`. */
void ts_fast_mark(struct ts_fast *fast, struct ts_flow *flow);

/* Between the files. */
#define TS_NEVER HUGE_VAL

static inline uint32_t ts_folded(uint32_t sum)
{
    return (sum & 0xffff) + (sum >> 16);
}

static inline void ts_put_native16(uint8_t *at, uint32_t value)
{
    uint16_t number = (uint16_t)value;

    memcpy(at, &number, 2);
}

static inline int32_t ts_diff(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b);
}

/* What the rest relies on: else it would write beyond its buffers, or divide by 0. */
int ts_flow_is_sound(const struct ts_flow *flow);
/* A flow that is new, with its key and its descriptor: 0, or -1, as for ts_fast_offer. */
int ts_fast_insert(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_return(struct ts_fast *fast, struct ts_flow *flow, enum ts_reason reason);
void ts_flow_report(struct ts_fast *fast, struct ts_flow *flow, uint32_t what);
void ts_flow_disarm_ack(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_arm_ack(struct ts_fast *fast, struct ts_flow *flow, double deadline);
uint64_t ts_fast_hash(const struct ts_fast *fast, const uint8_t *addresses, int family, const uint8_t *ports);
/* A table of pointers by descriptor, with room for `fd`; NULL without memory, and the old one stays. */
void *ts_fast_grow(void *table, int32_t *capacity, int fd);

int ts_chain_reserve(struct ts_fast *fast, struct ts_chain *chain, uint32_t limit, struct iovec *views,
                     int *count);
void ts_chain_commit(struct ts_fast *fast, struct ts_chain *chain, uint32_t count);
int ts_chain_append(struct ts_fast *fast, struct ts_chain *chain, int64_t *budget, const uint8_t *data,
                    uint32_t length);
int ts_chain_views(const struct ts_chain *chain, uint32_t offset, uint32_t count, struct iovec *views,
                   int most);
void ts_chain_release(struct ts_fast *fast, struct ts_chain *chain, int64_t *budget, uint32_t count);

int ts_flow_cut_sent(struct ts_fast *fast, struct ts_flow *flow, uint32_t ack);
void ts_flow_drop_sent(struct ts_fast *fast, struct ts_flow *flow);

/* The frame at `data`, which was read as the one of that `order`, is Python's, behind those before it. */
void ts_fast_leave(struct ts_fast *fast, uint8_t *data, uint32_t length, uint32_t port, uint64_t order);
/* The IP version of a whole packet with a right header without options, or 0: not such a one. */
int ts_fast_find_ip(const struct ts_fast *fast, const uint8_t *frame, uint32_t length, const uint8_t **ip,
                    uint32_t *end);
/*
 * Where the layer-4 header of a whole, unfragmented packet of `protocol` with a right IP header and `least` bytes
 * behind it starts; 0: not such a one.
 */
uint32_t ts_fast_find_layer4(const struct ts_fast *fast, const uint8_t *frame, uint32_t length,
                             uint32_t protocol, uint32_t least, int *family, const uint8_t **ip,
                             uint32_t *end);
/* The door to the link: to its shaping, or at once to the device. */
void ts_fast_transmit(struct ts_fast *fast, const struct iovec *views, int count);
/* The door to the device; what it does not take is Python's to send. */
void ts_fast_write(struct ts_fast *fast, const struct iovec *views, int count);
/* A frame of the device: 1 if a flow has taken it, 0 if it is Python's. */
int ts_fast_receive(struct ts_fast *fast, const uint8_t *frame, uint32_t length, double now);
/* The socket takes what it can of what has arrived; `ts_flow_settle` keeps the rest. */
void ts_flow_write(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_settle(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_read(struct ts_fast *fast, struct ts_flow *flow);
void ts_flow_consumed(struct ts_fast *fast, struct ts_flow *flow, uint32_t count);
void ts_flow_flush(struct ts_fast *fast, struct ts_flow *flow, double now);
int ts_flow_update_due(struct ts_fast *fast, struct ts_flow *flow);
double ts_flow_rto(const struct ts_flow *flow);
/* A round trip was measured. */
void ts_flow_sample(struct ts_flow *flow, double rtt, double now);
/* Whether nothing was sent for longer than an RTO (RFC 5681 4.1), of which Python was not told. */
int ts_flow_was_idle(const struct ts_flow *flow, double now);
uint32_t ts_flow_stamp(const struct ts_flow *flow, double now);
/*
 * Headers up to the TCP options, which belong to `header` bytes of TCP, for a segment of `size` bytes with what was
 * received acknowledged. Returns where the TCP header is, in `head`.
 */
uint8_t *ts_flow_head(const struct ts_flow *flow, uint8_t *head, uint32_t header, uint32_t size, uint32_t flags,
                      uint32_t seq, uint32_t window);
uint32_t ts_flow_send_room(const struct ts_fast *fast, const struct ts_flow *flow);
void ts_flow_want(struct ts_fast *fast, struct ts_flow *flow, uint32_t interest);

#endif
