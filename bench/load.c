/*
 * The load generator of the benchmarks. One thread, epoll, as few system calls as the job allows.
 *
 *   load serve ADDRESS PORT                         answers requests over TCP, at PORT and the PORTS - 1 ports
 *                                                   behind it; returns datagrams over UDP
 *   load requests ADDRESS PORT CONNECTIONS SECONDS  request, response, on connections that stay open
 *   load connects ADDRESS PORT CONNECTIONS SECONDS  connect, request, response, close; so many at a time
 *   load hold ADDRESS PORT CONNECTIONS              opens them, one request each, "ready"; until stdin ends
 *   load first ADDRESS PORT SECONDS                 datagrams, one a millisecond, until one comes back
 *   load udp-send (to|at) ADDRESS PORT SIZE RATE SECONDS
 *   load udp-receive (to|at) ADDRESS PORT SIZE      "at" waits for the other side, "to" calls it
 *   load link-serve ADDRESS PORT                    takes or sends as much as it can
 *   load link-peer SOCKET                           a guest of frames that takes what another one sends
 *   load link-guest ADDRESS PORT SOCKET (up|down) SECONDS   a guest of frames in a UNIX socket
 *
 * Results are one line of JSON on stdout. What fails is one line on stderr and status 1.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    REQUEST = 128,   /* bytes */
    RESPONSE = 1024, /* bytes */
    EVENTS = 256,
    PORTS = 16, /* `connects` takes them in turn: one port has 64,000 connections in a minute of TIME-WAIT */
};

#define LISTENS UINT32_MAX /* in the place of the bytes of a request */

static const uint64_t STALL = 5000000000; /* without any event: the gateway is stuck */

/* `a` with a port that is `offset` higher. */
static struct address beyond(const struct address *a, unsigned offset)
{
    struct address result = *a;
    /* It stands at the same place in both families. */
    char *at = (char *)&result.at + offsetof(struct sockaddr_in, sin_port);
    uint16_t port;
    memcpy(&port, at, sizeof port);
    port = htons((uint16_t)(ntohs(port) + offset));
    memcpy(at, &port, sizeof port);
    return result;
}

static void serve(const struct address *a)
{
    unsigned most = descriptors();
    uint32_t *got = calloc(most, sizeof *got); /* bytes of the request that is coming in, by descriptor */
    int udp = bound(a, SOCK_DGRAM | SOCK_NONBLOCK), epoll = poller();
    struct epoll_event events[EVENTS];
    if (!got)
        fail("calloc");
    for (unsigned i = 0; i < PORTS; i++) {
        struct address at = beyond(a, i);
        int listener = bound(&at, SOCK_STREAM | SOCK_NONBLOCK);
        if (listen(listener, 4096) < 0)
            fail("listen");
        got[listener] = LISTENS;
        watch(epoll, listener, EPOLLIN, (uint64_t)listener);
    }
    watch(epoll, udp, EPOLLIN, (uint64_t)udp);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = (int)events[i].data.u64;
            if (fd == udp) {
                struct address from = {.length = sizeof from.at};
                ssize_t size = recvfrom(udp, buffer, DATAGRAM, 0, (struct sockaddr *)&from.at, &from.length);
                if (size >= 0)
                    sendto(udp, buffer, (size_t)size, 0, (struct sockaddr *)&from.at, from.length);
                continue;
            }
            if (got[fd] == LISTENS) {
                int client, one = 1;
                while ((client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    if ((unsigned)client >= most)
                        stuck("too many descriptors");
                    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    got[client] = 0;
                    watch(epoll, client, EPOLLIN, (uint64_t)client);
                }
                if (errno == EMFILE || errno == ENFILE)
                    fail("accept");
                continue;
            }
            ssize_t size = recv(fd, buffer, DATAGRAM, 0);
            if (size < 0 && errno == EAGAIN)
                continue;
            if (size > 0)
                for (got[fd] += (uint32_t)size; size > 0 && got[fd] >= REQUEST; got[fd] -= REQUEST)
                    if (send(fd, buffer, RESPONSE, MSG_NOSIGNAL) != RESPONSE)
                        size = -1;
            if (size <= 0)
                close(fd);
        }
    }
}

struct slot {
    int fd;
    uint32_t got;   /* bytes of the response */
    uint64_t start; /* of the request, or of the connection */
    int asked;
    unsigned turn; /* connections so far */
};

static int connected(const struct address *a)
{
    struct timeval patience = {.tv_sec = 5};
    int fd = open_socket(a, SOCK_STREAM);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)&a->at, a->length) < 0)
        fail("connect");
    return fd;
}

static void ask(struct slot *s, uint64_t start)
{
    s->got = 0;
    s->start = start;
    if (send(s->fd, buffer, REQUEST, MSG_NOSIGNAL) != REQUEST)
        fail("send");
}

static void requests(const struct address *a, unsigned count, double seconds)
{
    struct slot *slots = calloc(count, sizeof *slots);
    struct histogram *h = calloc(1, sizeof *h);
    struct epoll_event events[EVENTS];
    int epoll = poller();
    if (!slots || !h)
        fail("calloc");
    descriptors();
    for (unsigned i = 0; i < count; i++) {
        slots[i].fd = connected(a);
        watch(epoll, slots[i].fd, EPOLLIN, i);
    }
    uint64_t start = now() + (uint64_t)(seconds * 1e8); /* the first tenth is not counted */
    uint64_t end = start + (uint64_t)(seconds * 1e9), time = now();
    for (unsigned i = 0; i < count; i++)
        ask(&slots[i], now());
    while (time < end) {
        int n = epoll_wait(epoll, events, EVENTS, (int)(STALL / MILLISECOND));
        if (n == 0)
            stuck("no response within 5 s");
        for (int i = 0; i < n; i++) {
            struct slot *s = &slots[events[i].data.u64];
            ssize_t size = recv(s->fd, buffer, DATAGRAM, MSG_DONTWAIT);
            if (size <= 0)
                fail(size ? "recv" : "the connection was closed");
            s->got += (uint32_t)size;
            if (s->got < RESPONSE)
                continue;
            time = now();
            if (time >= start && time < end)
                record(h, time - s->start);
            ask(s, time);
        }
        time = now();
    }
    report(h, seconds, h->count, 0);
}

/* Begins a connection; EPOLLET, so that one registration serves for "connected" and for "answered". */
static void begin(const struct address *a, int epoll, struct slot *s, uint64_t index)
{
    s->fd = open_socket(a, SOCK_STREAM | SOCK_NONBLOCK);
    s->got = 0;
    s->asked = 0;
    s->start = now();
    struct address at = beyond(a, s->turn++ % PORTS);
    if (connect(s->fd, (const struct sockaddr *)&at.at, at.length) < 0 && errno != EINPROGRESS)
        fail("connect");
    watch(epoll, s->fd, EPOLLIN | EPOLLOUT | EPOLLET, index);
}

static void connects(const struct address *a, unsigned count, double seconds)
{
    struct slot *slots = calloc(count, sizeof *slots);
    struct histogram *h = calloc(1, sizeof *h);
    struct epoll_event events[EVENTS];
    int epoll = poller();
    uint64_t opened = count, failed = 0, start = now(), time = start, end = start + (uint64_t)(seconds * 1e9);
    if (!slots || !h)
        fail("calloc");
    descriptors();
    for (unsigned i = 0; i < count; i++)
        begin(a, epoll, &slots[i], i);
    while (time < end) {
        int n = epoll_wait(epoll, events, EVENTS, (int)(STALL / MILLISECOND));
        if (n == 0)
            stuck("no connection made progress within 5 s");
        for (int i = 0; i < n; i++) {
            struct slot *s = &slots[events[i].data.u64];
            int lost = 0;
            if (!s->asked) {
                s->asked = send(s->fd, buffer, REQUEST, MSG_NOSIGNAL) == REQUEST;
                lost = !s->asked && errno != EAGAIN && errno != ENOTCONN;
            }
            while (!lost && s->asked && s->got < RESPONSE) {
                ssize_t size = recv(s->fd, buffer, DATAGRAM, 0);
                if (size < 0 && errno == EAGAIN)
                    break;
                lost = size <= 0;
                s->got += size > 0 ? (uint32_t)size : 0;
            }
            if (!lost && s->got < RESPONSE)
                continue;
            close(s->fd);
            time = now();
            failed += (uint64_t)lost;
            if (!lost && time < end)
                record(h, time - s->start);
            begin(a, epoll, s, events[i].data.u64);
            opened++;
        }
        time = now();
    }
    report(h, seconds, opened, failed);
}

static void hold(const struct address *a, unsigned count)
{
    if (descriptors() < count + 16)
        stuck("the limit of descriptors is below the number of connections");
    for (unsigned i = 0; i < count; i++) {
        int fd = connected(a);
        if (send(fd, buffer, REQUEST, MSG_NOSIGNAL) != REQUEST)
            fail("send");
        for (ssize_t got = 0, size; got < RESPONSE; got += size)
            if ((size = recv(fd, buffer, DATAGRAM, 0)) <= 0)
                fail("recv");
    }
    puts("ready");
    fflush(stdout);
    while (read(0, buffer, DATAGRAM) > 0)
        ;
}

int main(int count, char **words)
{
    const char *mode = count > 3 || (count == 3 && !strcmp(words[1], "link-peer")) ? words[1] : "";
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!strncmp(mode, "udp-", 4) && count > 4) {
        size_t early = 0;
        int called = !strcmp(words[2], "at");
        struct address a = parse(words[3], words[4]);
        int fd = meet(called, &a, &early);
        if (!strcmp(mode, "udp-receive") && count == 6)
            return udp_receive(fd, (size_t)atol(words[5]), early), 0;
        if (!strcmp(mode, "udp-send") && count == 8)
            return udp_send(fd, (size_t)atol(words[5]), atof(words[6]), atof(words[7])), 0;
    } else if (!strcmp(mode, "link-peer")) {
        return link_peer(words[2]), 0;
    } else if (*mode) {
        struct address a = parse(words[2], words[3]);
        if (!strcmp(mode, "serve") && count == 4)
            serve(&a);
        if (!strcmp(mode, "requests") && count == 6)
            return requests(&a, (unsigned)atoi(words[4]), atof(words[5])), 0;
        if (!strcmp(mode, "connects") && count == 6)
            return connects(&a, (unsigned)atoi(words[4]), atof(words[5])), 0;
        if (!strcmp(mode, "hold") && count == 5)
            return hold(&a, (unsigned)atoi(words[4])), 0;
        if (!strcmp(mode, "link-serve") && count == 4)
            link_server(&a);
        if (!strcmp(mode, "link-guest") && count == 7)
            return link_guest(words[4], !strcmp(words[5], "up"), &a, atof(words[6])), 0;
        if (!strcmp(mode, "first") && count == 5)
            return first(&a, atof(words[4])), 0;
    }
    fprintf(stderr, "see the head of load.c\n");
    return 2;
}
