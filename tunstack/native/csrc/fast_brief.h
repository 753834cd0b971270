/*
 * Brief connections: those that the guest opens, uses and closes soon, without a word to Python.
 *
 * Theory of operation. Python lets a guest through a *door*: an address and port that it may reach without being
 * asked for again, since the decision that Python has just taken is good for all connections to there. The door has
 * a model, the flow that a new connection is before its guest has answered. A SYN to a door that says what the
 * model's SYN did becomes a connect() of the host; when that has worked the guest sees SYN-ACK, and from its answer
 * on the flow is carried as any other, but that nobody in Python knows of it. The guest's FIN ends one direction
 * (CLOSE-WAIT), the end of the socket's stream the other (LAST-ACK), its acknowledgement the flow.
 *
 * All else makes Python *adopt* the flow: it is returned like any other, with the phase that it is in, what its SYN
 * was, and the times of its beginning, from which Python makes the connection that it would have had. So are flows
 * that live for longer than `patience`: what is not brief is Python's to know. Timers are looked at one and
 * all, when the first of them is due.
 *
 * A SYN is Python's if its four-tuple is: connections that Python has are claimed, as numbers of a hash, so that
 * now and then it is asked without need. Whoever has a claim withdraws it.
 *
 * Bounds: TS_BRIEF_DOORS doors, in sets of TS_BRIEF_WAYS, in which one gives way to another; TS_BRIEF_MOST flows,
 * and of those with a descriptor as many as Python says. A descriptor is closed with the round, so that no event is
 * taken for that of another with the same number.
 */
#ifndef TUNSTACK_FAST_BRIEF_H
#define TUNSTACK_FAST_BRIEF_H

#include "fastpath.h"

#include <netinet/in.h>

#define TS_BRIEF_DOORS 256
#define TS_BRIEF_WAYS 4
#define TS_BRIEF_MOST 512
#define TS_BRIEF_CLAIMS 65536
#define TS_BRIEF_SYN 120 /* bytes of the largest SYN: IP and TCP with options */

/* What a guest may reach. */
struct ts_door {
    struct ts_flow model; /* its key but for the guest's port */
    uint8_t target[28];   /* sockaddr_in or sockaddr_in6 */
    uint32_t target_length;
    uint32_t guest_mss; /* the option of the SYN that the model is made of */
    uint32_t path_mss;  /* and of its answer */
    double used_at;     /* when a SYN last came through it */
};

/* What `RightSizing` keeps; `start` < 0: no round has begun. */
struct ts_sizing {
    double start, rate, rtt, rtt_at;
    uint64_t received, consumed;
};

/* A flow, and what Python wants to know of it when it is adopted. */
struct ts_brief {
    struct ts_flow flow; /* at the beginning: one is made of the other */
    uint32_t iss, path_mss;
    uint32_t syn_length;
    uint8_t syn[TS_BRIEF_SYN]; /* the IP packet */
    uint8_t syn_due;           /* SYN-ACK is to be sent */
    uint8_t is_shut;           /* the socket knows that the guest has finished */
    uint8_t is_watched;        /* its descriptor is in the epoll set */
    double asked_at, opened_at, established_at; /* the last: < 0, not yet */
    struct ts_sizing sizing;
    struct ts_brief *older, *newer;
};

/* What the brief flows that are over have done, since it was last set to 0. */
struct ts_brief_past {
    uint64_t dials, accepted, ended;
    uint64_t bytes_in, bytes_out, segments_in, segments_out;
};

struct ts_briefs {
    /* set by Python */
    double patience; /* seconds */
    double sizing_round, sizing_shortest, sizing_longest, sizing_memory; /* of tcp.right_sizing */
    uint32_t most; /* flows with a descriptor, for now */

    uint32_t count, descriptors, door_count;
    struct ts_brief_past past;

    /* inside */
    struct ts_door *doors[TS_BRIEF_DOORS];
    uint32_t turn; /* of who gives way */
    uint16_t claims[TS_BRIEF_CLAIMS];
    struct ts_brief *oldest, *newest;
    double due; /* no timer is due before */
    uint32_t isn_state[8], stamp_state[8];
    int32_t closing[TS_BRIEF_MOST];
    uint32_t closing_count;
};

/* The secret of sequence numbers (RFC 6528), as `tunstack.tcp.isn` has it: at most 32 bytes. */
void ts_brief_set_secret(struct ts_fast *fast, const uint8_t *secret, uint32_t length);
/* The hash behind ISNs (0) or timestamp offsets (1) of a key, as it stands in a packet from the guest. */
uint32_t ts_brief_hash(const struct ts_fast *fast, int which, int family, const uint8_t *addresses,
                       const uint8_t *ports);
/* A door with everything 0, to be filled in and opened; NULL without memory. */
struct ts_door *ts_door_new(void);
/* 0, or -1: it cannot be. It is the fast path's from then on in both cases, and another may give way. */
int ts_door_open(struct ts_fast *fast, struct ts_door *door);
/* The door that is there for a flow with this key, or NULL. */
struct ts_door *ts_door_find(const struct ts_fast *fast, int family, const uint8_t *addresses,
                             const uint8_t *ports);
void ts_door_close(struct ts_fast *fast, struct ts_door *door);
/* Python has a connection of this key, or has none any more (`by` is 1 or -1). */
void ts_brief_claim(struct ts_fast *fast, int family, const uint8_t *addresses, const uint8_t *ports, int by);

/* Between the files. */
int ts_brief_is_claimed(const struct ts_fast *fast, int family, const uint8_t *addresses, const uint8_t *ports);
/* A socket on its way to where `door` leads, -1: Python is to find out why there is none. */
int ts_door_dial(const struct ts_door *door, int *is_connected);
/* A dial to an unused ephemeral port of the host itself may meet itself: nobody listens there. */
int ts_door_meets_itself(int fd, const struct ts_door *door);
/* The peer of the socket, when it is closed, sees RST, and no TIME-WAIT is left behind. */
void ts_door_linger_zero(int fd);
int ts_brief_init(struct ts_fast *fast);
void ts_brief_free(struct ts_fast *fast);
/* A SYN without a flow: 1 if a door takes it. `ip` is a whole packet, up to `end` of the frame. */
int ts_brief_open(struct ts_fast *fast, const uint8_t *frame, uint32_t at, uint32_t end, int family,
                  const uint8_t *ip, double now);
/* The socket that a flow is being connected by is ready. */
void ts_brief_connected(struct ts_fast *fast, struct ts_flow *flow);
/* The guest has answered SYN-ACK; `window` in bytes. */
void ts_brief_established(struct ts_fast *fast, struct ts_flow *flow, uint32_t window, uint32_t seq,
                          uint32_t ack, double now);
/* The guest's FIN has come, in order. */
void ts_brief_finished(struct ts_flow *flow);
/* The socket has taken what it can: tell it of the guest's FIN, if that was all. */
void ts_brief_shut(struct ts_fast *fast, struct ts_flow *flow);
/* The socket's stream has ended. */
void ts_brief_end_of_file(struct ts_fast *fast, struct ts_flow *flow);
/* `flow` is being removed. */
void ts_brief_unlink(struct ts_fast *fast, struct ts_flow *flow);
/* All is acknowledged: the flow is over. */
void ts_brief_end(struct ts_fast *fast, struct ts_flow *flow);
/* 1 if that is all that `flow` has to send. */
int ts_brief_flush(struct ts_fast *fast, struct ts_flow *flow, double now);
/* What Python would be asked for about a flow that it had. */
void ts_brief_collect(struct ts_fast *fast, struct ts_flow *flow);
void ts_brief_arm(struct ts_fast *fast, double deadline);
void ts_brief_expire(struct ts_fast *fast);
void ts_brief_close_descriptors(struct ts_fast *fast);

static inline struct ts_brief *ts_brief_of(struct ts_flow *flow)
{
    return (struct ts_brief *)(void *)flow;
}

#endif
