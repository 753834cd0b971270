/* What the parts of the load generator share; load.c says what it does. */
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
    BATCH = 32, /* datagrams of one system call */
    DATAGRAM = 65536,
    BUCKETS = 64 * 60,
};

static const uint64_t MILLISECOND = 1000000, SECOND = 1000000000; /* in nanoseconds, as all times */

struct address {
    struct sockaddr_storage at;
    socklen_t length;
};

/* Latencies in buckets of which each is at most 1/64 wider than its lower edge. */
struct histogram {
    uint64_t bucket[BUCKETS], count, most;
};

extern char buffer[BATCH][DATAGRAM];

/* One line on stderr, with or without errno, and status 1. */
_Noreturn void fail(const char *what);
_Noreturn void stuck(const char *what);

uint64_t now(void);
void sleep_until(uint64_t when);
void record(struct histogram *h, uint64_t ns);
void report(const struct histogram *h, double seconds, uint64_t total, uint64_t failed);
struct address parse(const char *host, const char *port);
int open_socket(const struct address *a, int type);
int bound(const struct address *a, int type);
int poller(void);
void watch(int epoll, int fd, uint32_t events, uint64_t data);
/* Raises the limit of descriptors as far as it goes, and returns it. */
unsigned descriptors(void);

void first(const struct address *a, double seconds);
int meet(int called, const struct address *a, size_t *early);
void udp_send(int fd, size_t size, double rate, double seconds);
void udp_receive(int fd, size_t size, size_t early);
/* load_link.c: one transfer by a guest of frames, and the server for it. */
void link_guest(const char *path, int is_up, const struct address *server, double seconds);
void link_server(const struct address *a);
/* A guest that takes what another one sends it, until that one resets the connection. */
void link_peer(const char *path);

#endif
