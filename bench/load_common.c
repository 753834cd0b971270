/* Clock, histogram and sockets of the load generator. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

char buffer[BATCH][DATAGRAM];

void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

void stuck(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

void sleep_until(uint64_t when)
{
    struct timespec t = {(time_t)(when / SECOND), (long)(when % SECOND)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

void record(struct histogram *h, uint64_t ns)
{
    unsigned shift = ns < 128 ? 0 : 57 - (unsigned)__builtin_clzll(ns);
    uint64_t index = shift * 64 + (ns >> shift);
    h->bucket[index < BUCKETS ? index : BUCKETS - 1]++;
    h->count++;
    if (ns > h->most)
        h->most = ns;
}

/* The upper edge of the bucket in which the share `part` of all latencies is reached, in seconds. */
static double percentile(const struct histogram *h, double part)
{
    uint64_t wanted = (uint64_t)((double)h->count * part), seen = 0;
    for (uint64_t i = 0; i < BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen > wanted || (seen == h->count && h->count)) {
            unsigned shift = i < 128 ? 0 : (unsigned)(i / 64 - 1);
            uint64_t edge = ((i - shift * 64 + 1) << shift) - 1;
            return (double)(edge < h->most ? edge : h->most) / 1e9;
        }
    }
    return 0;
}

void report(const struct histogram *h, double seconds, uint64_t total, uint64_t failed)
{
    printf("{\"count\": %" PRIu64 ", \"seconds\": %.6f, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f, "
           "\"most\": %.9f, \"total\": %" PRIu64 ", \"failed\": %" PRIu64 "}\n",
           h->count, seconds, percentile(h, 0.5), percentile(h, 0.99), percentile(h, 0.999),
           (double)h->most / 1e9, total, failed);
}

struct address parse(const char *host, const char *port)
{
    struct address a = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&a.at;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&a.at;
    uint16_t number = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = number;
        a.length = sizeof *v4;
    } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = number;
        a.length = sizeof *v6;
    } else {
        stuck("not an address");
    }
    return a;
}

int open_socket(const struct address *a, int type)
{
    int fd = socket(a->at.ss_family, type | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        fail("socket");
    if ((type & 0xf) == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

int bound(const struct address *a, int type)
{
    int fd = open_socket(a, type), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (const struct sockaddr *)&a->at, a->length) < 0)
        fail("bind");
    return fd;
}

int poller(void)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        fail("epoll_create1");
    return fd;
}

void watch(int epoll, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

unsigned descriptors(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return (unsigned)limit.rlim_cur;
}
