/*
 * A switch as the device: many sockets that carry frames, each behind a port, and unicast between them.
 *
 * Theory of operation. Python decides: it says who may send what (a *source*: a MAC and an IP address at a port)
 * and where a MAC is (a *station*). A plain TCP or UDP packet whose source is known goes, if it is for the gateway,
 * the way of all frames, and to the port of a station that is known; any other frame is Python's, with the number
 * of its port. So nothing is forwarded or touches a flow that Python would have refused. What Python has said is
 * forgotten after a while, and whenever it says so.
 *
 * Behind the device's descriptor is an epoll of the ports, which is Python's too: its events carry descriptors.
 * What is sent waits in the buffers of its port; what does not fit there is dropped and counted.
 *
 * Bounds: TS_SWITCH_PORTS ports; TS_SWITCH_RULES sources and stations, all of which are forgotten when they are too
 * many; TS_SWITCH_FORWARD frames are forwarded in a round. Nothing blocks.
 */
#ifndef TUNSTACK_FAST_SWITCH_H
#define TUNSTACK_FAST_SWITCH_H

#include "fast_stream.h"

#define TS_SWITCH_PORTS 256
#define TS_SWITCH_RULES 16384 /* a power of 2 */
#define TS_SWITCH_FORWARD 512

/* Port 0 is none. */
struct ts_port {
    struct ts_stream *stream;
    uint8_t is_isolated; /* set by Python */
    uint8_t is_ready, is_dirty, is_behind;
    int32_t error; /* the errno that has ended it */
};

struct ts_rule {
    double until; /* 0: there is none */
    uint32_t port;
    uint8_t family; /* 4 or 6: a source; 0: a station */
    uint8_t mac[6];
    uint8_t address[16];
};

struct ts_switch {
    int32_t epoll_fd;
    uint32_t ended; /* ports with an error that Python has not dealt with */
    uint64_t forwarded;
    /* frames that were dropped: no room at their port, or none that can be; Python resets them */
    uint32_t full, too_long, too_short, bad_header;
    struct ts_port ports[TS_SWITCH_PORTS];

    /* inside */
    uint32_t next, rule_count, budget;
    uint8_t *listed; /* numbers of the ports that are open */
    uint32_t listed_count;
    struct ts_rule *rules;
};

/* The device of `fast` is a switch from now on; NULL without memory. */
struct ts_switch *ts_switch_open(struct ts_fast *fast, int epoll_fd);
/* Open port `number`, which is free, as ts_stream_open does a device; NULL without memory. */
struct ts_stream *ts_switch_connect(struct ts_fast *fast, uint32_t number, int fd, uint32_t prefix, int little,
                                    uint32_t most, uint32_t limit);
/* Forget it, with its buffers and all rules. */
void ts_switch_disconnect(struct ts_fast *fast, uint32_t number);
/* What `mac` sends from `address` at port `number` is believed until then. */
void ts_switch_allow(struct ts_fast *fast, uint32_t number, const uint8_t *mac, int family, const uint8_t *address,
                     double until);
/* `mac` is behind port `number`. */
void ts_switch_locate(struct ts_fast *fast, uint32_t number, const uint8_t *mac, double until);
/* Forget all of that. */
void ts_switch_forget(struct ts_fast *fast);
/* Add up what the ports have dropped. */
void ts_switch_count(struct ts_fast *fast);
/* Send what waits for port `number`: 0, or the errno that has ended it. */
int ts_switch_flush_port(struct ts_fast *fast, uint32_t number);

/* Between the files. */
void ts_switch_free(struct ts_switch *sw);
/* Which ports are ready; before the reads of a round. */
void ts_switch_poll(struct ts_switch *sw);
/* As ts_stream_read; `fast->from` is the number of the port if the frame is Python's, and else 0. */
ssize_t ts_switch_read(struct ts_fast *fast, uint8_t *data);
int ts_switch_has_frame(struct ts_switch *sw);
/* As ts_stream_write; EHOSTUNREACH: only Python knows for whom it is. */
int ts_switch_write(struct ts_fast *fast, const struct iovec *views, int count);
void ts_switch_flush(struct ts_switch *sw);

#endif
