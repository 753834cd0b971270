/*
 * The fast path of UDP: datagrams of admitted flows between the device and the sockets of their mappings.
 *
 * Theory of operation. A *path* is one pair of mapping (guest address and port, with its socket) and destination
 * that Python has admitted, by policy, and sent to before. Datagrams of the guest that are whole, unfragmented,
 * right and of the DF that the socket stands at are collected while a batch of the device is read and sent by one
 * `sendmmsg` for each socket; TTL and TOS travel with each as ancillary data. Those of one size to a destination
 * that has answered go as one train (UDP_SEGMENT), which the kernel carries as far as it can; of a train that
 * nobody takes it tells once, which is why it has to have answered. Datagrams from the destination of a
 * path, or trains of such (UDP_GRO), go to the device as they come from `recvmmsg`, cut into fragments if they
 * do not fit the MTU.
 *
 * A datagram in fragments is put together here (an *assembly*) as long as they come in order, each in the place
 * where it is due, and soon, as from one sender over one link: a copy of each frame is kept until the last one
 * is there. Whatever is different - a gap, another order, an overlap, too many, too late - leaves all of them to
 * Python, in the order in which they came, whose reassembly is complete.
 *
 * All else is Python's, which does what it does without a fast path: a frame that is not common goes to it
 * unconsumed, a frame that the socket did not take likewise, a datagram from anybody else or too large for a packet in
 * `ts_udp.datagrams`, an error of a socket as a ready descriptor. What follows such a frame or datagram on the
 * same socket goes after it, so that nothing overtakes (`held`).
 *
 * What Python keeps in order of use - mappings, and destinations of a mapping - is told of by lists of what was
 * used since it last asked (`recent_oldest`, `newest`); the idle timer asks `last_used`.
 *
 * Bounds: paths and sockets are Python's to bound; TS_UDP_BURST datagrams of a socket in a round, and as many
 * for Python in a call; TS_UDP_REFUSED bytes that the device did not take; TS_UDP_ASSEMBLIES datagrams in
 * TS_UDP_PIECES fragments. Nothing blocks.
 */
#ifndef TUNSTACK_FAST_UDP_H
#define TUNSTACK_FAST_UDP_H

#include "fastpath.h"

#define TS_UDP_QUOTE 128
#define TS_UDP_BURST 16
#define TS_UDP_DATAGRAM 65536
#define TS_UDP_REFUSED 4194304

/* One destination of one mapping. */
struct ts_udp_path {
    /* key: as in frames from the guest */
    uint8_t family; /* 4 or 6 */
    uint8_t address[32];
    uint8_t ports[4];
    uint8_t has_answered; /* a datagram has come from there, and no error since */
    uint8_t is_own; /* the destination is one of our addresses: we are no hop */
    /* the destination as the host knows it */
    uint8_t peer[16];
    uint16_t peer_port;
    /* output to the guest */
    uint8_t head[TS_FAST_HEAD];
    uint32_t head_length; /* link and IP header */
    uint32_t link_length;
    uint32_t pseudo_sum; /* of addresses and protocol */

    /* results */
    uint8_t is_used; /* sent to since Python last asked */
    uint8_t is_single; /* the kernel did not take a train for it */
    uint8_t quote[TS_UDP_QUOTE];
    uint32_t quote_length;

    /* inside */
    struct ts_udp_socket *socket;
    struct ts_udp_path *newer, *older; /* of the socket's paths */
    struct ts_udp_path *next;          /* of the same bucket */
    uint64_t hash;
    uint32_t ident_slot;
    uint8_t target[28]; /* sockaddr */
    uint32_t target_length;
};

/* One mapping. */
struct ts_udp_socket {
    int32_t fd;
    uint8_t mac[6]; /* of the guest, on a link that has MACs */
    uint8_t dont_fragment; /* what IP_MTU_DISCOVER says; in IPv6 1 */
    uint8_t has_failed; /* a send has failed: errors may wait in the queue. Python resets it */
    double last_used;   /* the last datagram in either direction */
    uint32_t path_count;
    struct ts_udp_path *newest, *oldest; /* by the last datagram sent */

    /* inside */
    uint8_t is_recent;
    uint64_t held; /* the call in which something of it went to Python */
    struct ts_udp_socket *newer, *older; /* of those used since Python last asked */
};

/* A datagram, or a train of them, that Python is to handle. */
struct ts_datagram {
    struct ts_udp_socket *socket; /* NULL: it has been closed meanwhile */
    const uint8_t *data;
    uint32_t length;
    uint32_t segment; /* bytes of each datagram of a train but the last; 0: no train */
    uint32_t traffic_class;
    uint8_t address[16]; /* of the sender; 4 or 16 bytes */
    uint32_t address_length;
    uint32_t scope;
    uint16_t port;
};

struct ts_udp {
    /* set by Python */
    uint32_t mtu;
    uint8_t uso; /* the device takes trains */
    uint32_t most_pieces; /* fragments of a datagram that is put together here; 0: none is */

    /* results of a call */
    uint32_t datagram_count;
    struct ts_datagram datagrams[TS_UDP_BURST];

    /* counters; Python resets the last two */
    uint64_t datagrams_up, datagrams_down;
    uint64_t assembled, cut; /* of fragments, into fragments */
    uint32_t socket_full, queue_full;
    uint32_t path_count, socket_count;

    struct ts_udp_socket *recent_oldest, *recent_newest;
};

/* NULL without memory. A socket is readable until it is closed, which needs all its paths withdrawn. */
struct ts_udp_socket *ts_udp_open(struct ts_fast *fast, int fd);
void ts_udp_close(struct ts_fast *fast, struct ts_udp_socket *socket);

/* A path with everything 0, to be filled in and offered; NULL without memory. */
struct ts_udp_path *ts_udp_path_new(void);
/* 0, or -1, and the path is freed: the key is taken, or there is no memory. */
int ts_udp_offer(struct ts_fast *fast, struct ts_udp_socket *socket, struct ts_udp_path *path);
/* Forget the path and free it. */
void ts_udp_withdraw(struct ts_fast *fast, struct ts_udp_path *path);

/* Python has seen which sockets, or which paths of a socket, were used. */
void ts_udp_seen(struct ts_fast *fast);
void ts_udp_seen_paths(struct ts_udp_socket *socket);
/* Leave the fragments of datagrams that are not whole to Python, as all the frames that there are for it. */
void ts_udp_leave_fragments(struct ts_fast *fast);

/* Between the files. */
int ts_udp_new(struct ts_fast *fast);
void ts_udp_free(struct ts_fast *fast);
/* Begin a call: what the last one left for Python has been dealt with. */
void ts_udp_reset(struct ts_fast *fast);
/* A frame of the device: 1 if it is collected, 0 if it is Python's. */
int ts_udp_receive(struct ts_fast *fast, uint8_t *frame, uint32_t length);
/* Send what was collected; what the sockets refuse becomes Python's. */
void ts_udp_send(struct ts_fast *fast);
/* Leave to Python the fragments whose time is over, and when the next are due. */
void ts_udp_expire(struct ts_fast *fast);
double ts_udp_deadline(const struct ts_fast *fast);
/* A descriptor is ready: 1 if it was served, 0 if it is Python's, with `*events`. */
int ts_udp_serve(struct ts_fast *fast, int fd, uint32_t *events);

#endif
