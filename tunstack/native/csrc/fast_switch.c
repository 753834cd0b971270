/* Many ports as one device; fast_switch.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_switch.h"
#include "fast_wire.h"

#include <stdlib.h>

#define FORGET (TS_SWITCH_RULES / 4 * 3)

struct ts_switch *ts_switch_open(struct ts_fast *fast, int epoll_fd)
{
    struct ts_switch *sw;

    if (fast->sw || fast->stream)
        return NULL;
    sw = calloc(1, sizeof *sw);
    if (!sw)
        return NULL;
    sw->epoll_fd = epoll_fd;
    sw->listed = malloc(TS_SWITCH_PORTS);
    sw->rules = calloc(TS_SWITCH_RULES, sizeof *sw->rules);
    if (!sw->listed || !sw->rules) {
        ts_switch_free(sw);
        return NULL;
    }
    fast->sw = sw;
    return sw;
}

void ts_switch_free(struct ts_switch *sw)
{
    uint32_t i;

    if (!sw)
        return;
    for (i = 0; i < TS_SWITCH_PORTS; i++)
        ts_stream_free(sw->ports[i].stream);
    free(sw->listed);
    free(sw->rules);
    free(sw);
}

static struct ts_port *find_port(struct ts_switch *sw, uint32_t number)
{
    return number && number < TS_SWITCH_PORTS && sw->ports[number].stream ? sw->ports + number : NULL;
}

struct ts_stream *ts_switch_connect(struct ts_fast *fast, uint32_t number, int fd, uint32_t prefix, int little,
                                    uint32_t most, uint32_t limit)
{
    struct ts_switch *sw = fast->sw;
    struct ts_stream *stream;

    if (!number || number >= TS_SWITCH_PORTS || sw->ports[number].stream)
        return NULL;
    stream = ts_stream_new(fd, prefix, little, 1, most);
    if (!stream)
        return NULL;
    stream->limit = limit;
    memset(sw->ports + number, 0, sizeof *sw->ports);
    sw->ports[number].stream = stream;
    sw->listed[sw->listed_count++] = (uint8_t)number;
    return stream;
}

void ts_switch_disconnect(struct ts_fast *fast, uint32_t number)
{
    struct ts_switch *sw = fast->sw;
    struct ts_port *port = find_port(sw, number);
    uint32_t i, kept = 0;

    if (!port)
        return;
    sw->ended -= port->error != 0;
    ts_stream_free(port->stream);
    memset(port, 0, sizeof *port);
    for (i = 0; i < sw->listed_count; i++)
        if (sw->listed[i] != number)
            sw->listed[kept++] = sw->listed[i];
    sw->listed_count = kept;
    ts_switch_forget(fast);
}

/* Rules. */

void ts_switch_forget(struct ts_fast *fast)
{
    memset(fast->sw->rules, 0, TS_SWITCH_RULES * sizeof *fast->sw->rules);
    fast->sw->rule_count = 0;
}

static uint32_t hash_rule(const struct ts_fast *fast, const struct ts_rule *rule)
{
    uint64_t hash = fast->seed ^ ((uint64_t)rule->port << 8 | rule->family), word;
    size_t i;

    for (i = 0; i < sizeof rule->address; i += 8) {
        memcpy(&word, rule->address + i, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    hash = (hash ^ ts_get32(rule->mac) ^ (uint64_t)ts_get16(rule->mac + 4) << 32) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(hash >> 40) & (TS_SWITCH_RULES - 1);
}

/* Where `rule` is, or would be: a station whatever its port, as that is what is asked. */
static struct ts_rule *find_rule(const struct ts_fast *fast, const struct ts_rule *rule)
{
    struct ts_rule key = *rule, *at;
    uint32_t i;

    if (!key.family)
        key.port = 0;
    for (i = hash_rule(fast, &key);; i = (i + 1) & (TS_SWITCH_RULES - 1)) {
        at = fast->sw->rules + i;
        if (at->until == 0 ||
            (at->family == rule->family && (!rule->family || at->port == rule->port) &&
             !memcmp(at->mac, rule->mac, 6) && !memcmp(at->address, rule->address, 16)))
            return at;
    }
}

static void set_rule(struct ts_fast *fast, struct ts_rule *rule, const uint8_t *mac, double until)
{
    struct ts_rule *at;

    memcpy(rule->mac, mac, 6);
    if (fast->sw->rule_count >= FORGET)
        ts_switch_forget(fast);
    at = find_rule(fast, rule);
    fast->sw->rule_count += at->until == 0;
    *at = *rule;
    at->until = until;
}

void ts_switch_allow(struct ts_fast *fast, uint32_t number, const uint8_t *mac, int family, const uint8_t *address,
                     double until)
{
    struct ts_rule rule = {.port = number, .family = (uint8_t)family};

    if (!find_port(fast->sw, number) || until <= 0)
        return;
    memcpy(rule.address, address, family == 4 ? 4 : 16);
    set_rule(fast, &rule, mac, until);
}

void ts_switch_locate(struct ts_fast *fast, uint32_t number, const uint8_t *mac, double until)
{
    struct ts_rule rule = {.port = number};

    if (find_port(fast->sw, number) && until > 0)
        set_rule(fast, &rule, mac, until);
}

/* The port of `mac`; 0 if only Python knows. */
static uint32_t find_station(const struct ts_fast *fast, const uint8_t *mac)
{
    struct ts_rule rule = {0};
    const struct ts_rule *at;

    memcpy(rule.mac, mac, 6);
    at = find_rule(fast, &rule);
    return at->until > fast->now ? at->port : 0;
}

/* Whether `frame`, which has come in at `port`, is a plain packet of TCP or UDP from a source that is known. */
static int is_allowed(const struct ts_fast *fast, uint32_t port, const uint8_t *frame, uint32_t length)
{
    struct ts_rule rule = {.port = port};
    const uint8_t *ip = frame + TS_ETHERNET, *address;
    uint32_t header, protocol;

    rule.family = (uint8_t)ts_ip_version(frame, length, 1);
    if (rule.family == 4) {
        protocol = ip[9];
        header = (ip[0] & 15u) * 4;
        address = ip + 12;
        memcpy(rule.address, address, 4);
        /* A port of DHCP is for the guard to look at. */
        if (protocol == TS_PROTOCOL_UDP && !(ts_get16(ip + 6) & 0x1fff) &&
            (length < TS_ETHERNET + header + 4 || ts_get16(ip + header) == 67 || ts_get16(ip + header + 2) == 67))
            return 0;
    } else if (rule.family == 6) {
        protocol = ip[6];
        memcpy(rule.address, ip + 8, 16);
    } else {
        return 0;
    }
    if (protocol != TS_PROTOCOL_TCP && protocol != TS_PROTOCOL_UDP)
        return 0;
    memcpy(rule.mac, frame + 6, 6);
    return find_rule(fast, &rule)->until > fast->now;
}

/* Reading. */

static void end_port(struct ts_switch *sw, struct ts_port *port, int error)
{
    if (!port->error) {
        port->error = error;
        sw->ended++;
    }
    port->is_ready = 0;
}

static void take_event(struct ts_port *port, uint32_t bits)
{
    if (bits & ~(uint32_t)EPOLLOUT && !port->error)
        port->is_ready = 1;
    if (bits & EPOLLOUT)
        port->is_dirty = 1;
}

void ts_switch_poll(struct ts_switch *sw)
{
    struct epoll_event events[TS_FAST_EVENTS];
    int count = 0, i;
    uint32_t k;

    sw->budget = TS_SWITCH_FORWARD;
    sw->next++; /* each port is first in its turn */
    for (k = 0; k < sw->listed_count; k++)
        sw->ports[sw->listed[k]].stream->is_drained = 0;
    if (sw->listed_count == 1)
        take_event(sw->ports + sw->listed[0], EPOLLIN | EPOLLOUT); /* who else */
    else
        count = epoll_wait(sw->epoll_fd, events, TS_FAST_EVENTS, 0);
    for (i = 0; i < count; i++)
        for (k = 0; k < sw->listed_count; k++)
            if (sw->ports[sw->listed[k]].stream->fd == events[i].data.fd)
                take_event(sw->ports + sw->listed[k], events[i].events);
}

/* Write a frame that has arrived at `from` to `to`, cut and completed as its header says: 0, EAGAIN, EINVAL if `to`
 * cannot carry it, or what has ended `to`. */
static int pass_on(struct ts_stream *from, struct ts_stream *to, const uint8_t *frame, uint32_t length)
{
    int error;

    if (from->has_header) {
        struct iovec view = ts_wire_view(frame - TS_FAST_VNET, TS_FAST_VNET + length);

        return ts_stream_write(to, &view, 1);
    }
    error = ts_stream_forward(to, frame, length);
    if (!error && to->out_end - to->out_start >= TS_STREAM_CHUNK)
        error = ts_stream_flush(to);
    return error;
}

/* Forward `frame` to the station that it is for; 0: that is Python's. */
static int forward(struct ts_fast *fast, struct ts_port *from, const uint8_t *frame, uint32_t length)
{
    struct ts_switch *sw = fast->sw;
    uint32_t number = find_station(fast, frame);
    struct ts_port *to = find_port(sw, number);

    if (!to || to == from || (to->is_isolated && from->is_isolated))
        return 0;
    if (!to->error) {
        int error = pass_on(from->stream, to->stream, frame, length);

        to->is_dirty = 1;
        if (error == EAGAIN || error == EINVAL)
            sw->full++;
        else if (error)
            end_port(sw, to, error);
    }
    sw->forwarded++;
    sw->budget--;
    return 1;
}

/* The next frame of `port` that is not for another one; -1: there is none now. */
static ssize_t read_port(struct ts_fast *fast, uint32_t number, uint8_t *data)
{
    struct ts_port *port = fast->sw->ports + number;
    struct ts_stream *stream = port->stream;

    while (fast->sw->budget) {
        uint32_t length = 0;
        const uint8_t *frame = ts_stream_peek(stream, &length);
        int allowed;

        if (!frame) {
            if (stream->is_drained || !port->is_ready)
                return -1;
            if (ts_stream_receive(stream)) {
                if (errno != EAGAIN && errno != EWOULDBLOCK)
                    end_port(fast->sw, port, errno);
                port->is_ready = 0;
                return -1;
            }
            continue;
        }
        allowed = is_allowed(fast, number, frame, length);
        if (allowed && memcmp(frame, fast->mac, 6)) {
            if (forward(fast, port, frame, length)) {
                ts_stream_take(stream, frame, length, NULL);
                continue;
            }
            allowed = 0;
        }
        fast->from = allowed ? 0 : number;
        return ts_stream_take(stream, frame, length, data);
    }
    return -1;
}

ssize_t ts_switch_read(struct ts_fast *fast, uint8_t *data)
{
    struct ts_switch *sw = fast->sw;
    uint32_t tries;

    for (tries = 0; tries < sw->listed_count; tries++) {
        uint32_t number;
        ssize_t length;

        sw->next = sw->next < sw->listed_count ? sw->next : 0;
        number = sw->listed[sw->next];
        length = read_port(fast, number, data);
        if (length >= 0)
            return length;
        sw->next++;
    }
    errno = EAGAIN;
    return -1;
}

int ts_switch_has_frame(struct ts_switch *sw)
{
    uint32_t i;

    for (i = 0; i < sw->listed_count; i++)
        if (ts_stream_has_frame(sw->ports[sw->listed[i]].stream))
            return 1;
    return 0;
}

/* Writing. */

int ts_switch_write(struct ts_fast *fast, const struct iovec *views, int count)
{
    const uint8_t *frame = (const uint8_t *)views->iov_base + TS_FAST_VNET;
    struct ts_port *port = find_port(fast->sw, find_station(fast, frame));
    int error;

    if (!port)
        return EHOSTUNREACH;
    if (port->error)
        return 0;
    error = ts_stream_write(port->stream, views, count);
    port->is_dirty = 1;
    if (!error)
        return 0;
    if (error == EINVAL)
        return error;
    if (error == EAGAIN)
        fast->sw->full++;
    else
        end_port(fast->sw, port, error);
    return 0;
}

static void set_interest(struct ts_switch *sw, struct ts_port *port)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = port->stream->fd};
    uint8_t is_behind = port->stream->out_start != port->stream->out_end;

    if (is_behind == port->is_behind)
        return;
    port->is_behind = is_behind;
    event.events |= is_behind ? EPOLLOUT : 0;
    epoll_ctl(sw->epoll_fd, EPOLL_CTL_MOD, port->stream->fd, &event);
}

static int flush_port(struct ts_switch *sw, struct ts_port *port)
{
    port->is_dirty = 0;
    if (!port->error) {
        int error = ts_stream_flush(port->stream);

        if (error)
            end_port(sw, port, error);
        else
            set_interest(sw, port);
    }
    return port->error;
}

void ts_switch_count(struct ts_fast *fast)
{
    struct ts_switch *sw = fast->sw;
    uint32_t i;

    for (i = 0; i < sw->listed_count; i++) {
        struct ts_stream *stream = sw->ports[sw->listed[i]].stream;

        sw->too_long += stream->too_long;
        sw->bad_header += stream->bad_header;
        sw->too_short += stream->too_short;
        stream->too_long = stream->too_short = stream->bad_header = 0;
    }
}

int ts_switch_flush_port(struct ts_fast *fast, uint32_t number)
{
    struct ts_port *port = find_port(fast->sw, number);

    return port ? flush_port(fast->sw, port) : 0;
}

void ts_switch_flush(struct ts_switch *sw)
{
    uint32_t i;

    for (i = 0; i < sw->listed_count; i++)
        if (sw->ports[sw->listed[i]].is_dirty)
            flush_port(sw, sw->ports + sw->listed[i]);
}
