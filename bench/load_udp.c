/* Datagrams of the load generator: the first that passes, and as many as are asked for. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/uio.h>

enum { SEQUENCES = 1 << 24 }; /* datagrams that a receiver tells apart */

void first(const struct address *a, double seconds)
{
    uint64_t end = now() + (uint64_t)(seconds * 1e9);
    int fd = open_socket(a, SOCK_DGRAM | SOCK_NONBLOCK);
    for (uint64_t tick = now(); tick < end; sleep_until(tick += MILLISECOND)) {
        /* There is no route and no source address until the gateway has made them. */
        if (sendto(fd, "?", 1, 0, (const struct sockaddr *)&a->at, a->length) == 1 &&
            recv(fd, buffer, DATAGRAM, 0) == 1)
            goto arrived;
        for (int i = 0; i < 4; i++) {
            sleep_until(tick + (uint64_t)i * MILLISECOND / 4);
            if (recv(fd, buffer, DATAGRAM, 0) == 1)
                goto arrived;
        }
    }
    stuck("no datagram came back");
arrived:
    printf("{\"at\": %.6f}\n", (double)now() / 1e9);
}

/* Datagrams: a kind, then the sequence number; HELLO goes both ways until each side knows the other. */
enum { HELLO = 1, DATA, END };

struct datagram {
    uint32_t kind, sequence;
};

/* A socket that is connected to the other side; if what came was data already `*early` is its size. */
int meet(int called, const struct address *a, size_t *early)
{
    struct datagram d = {HELLO, 0};
    struct address peer = {.length = sizeof peer.at};
    int size = 1 << 22, fd = called ? bound(a, SOCK_DGRAM) : open_socket(a, SOCK_DGRAM);
    struct timeval patience = {.tv_sec = called ? 5 : 0, .tv_usec = called ? 0 : 50000};
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (called) {
        puts("ready");
        fflush(stdout);
        if (recvfrom(fd, &d, sizeof d, 0, (struct sockaddr *)&peer.at, &peer.length) < 0)
            fail("waiting for the other side");
        if (connect(fd, (struct sockaddr *)&peer.at, peer.length) < 0 || send(fd, &d, sizeof d, 0) < 0)
            fail("answering the other side");
        return fd;
    }
    if (connect(fd, (const struct sockaddr *)&a->at, a->length) < 0)
        fail("connect");
    for (int i = 0; i < 100; i++) {
        if (send(fd, &d, sizeof d, 0) < 0 && errno != ECONNREFUSED)
            fail("calling the other side");
        struct datagram answer;
        ssize_t got = recv(fd, &answer, sizeof answer, MSG_TRUNC);
        if (got >= (ssize_t)sizeof answer) {
            *early = answer.kind == DATA ? (size_t)got : 0;
            return fd;
        }
    }
    stuck("the other side does not answer");
    return -1;
}

void udp_send(int fd, size_t size, double rate, double seconds)
{
    static struct datagram head[BATCH];
    struct iovec parts[BATCH][2];
    struct mmsghdr messages[BATCH];
    uint64_t sent = 0, refused = 0, total = (uint64_t)(rate * seconds), begin, start, last;
    if (size < sizeof head[0] || size > 65000 || total > SEQUENCES)
        stuck("the size or the number of datagrams is outside the range");
    memset(messages, 0, sizeof messages);
    for (unsigned i = 0; i < BATCH; i++) {
        head[i].kind = DATA;
        parts[i][0] = (struct iovec){&head[i], sizeof head[i]};
        parts[i][1] = (struct iovec){buffer[0], size - sizeof head[i]};
        messages[i].msg_hdr.msg_iov = parts[i];
        messages[i].msg_hdr.msg_iovlen = 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    begin = start = last = now();
    uint64_t end = start + (uint64_t)(seconds * 1e9);
    while (sent < total && (last = now()) < end) {
        uint64_t due = (uint64_t)((double)(last - begin) * rate / 1e9) + 1;
        if ((double)due > (double)sent + 2 + rate / 200) { /* was held up: never more than 5 ms at once */
            begin = last - (uint64_t)((double)sent / rate * 1e9) - 5 * MILLISECOND;
            continue;
        }
        if (due > total)
            due = total;
        if (due <= sent) {
            uint64_t next = begin + (uint64_t)((double)sent / rate * 1e9), tick = last + MILLISECOND / 5;
            sleep_until(next > tick ? next : tick);
            continue;
        }
        unsigned n = due - sent < BATCH ? (unsigned)(due - sent) : BATCH;
        for (unsigned i = 0; i < n; i++)
            head[i].sequence = (uint32_t)(sent + i);
        int done = sendmmsg(fd, messages, n, 0);
        if (done < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
            fail("sendmmsg");
        refused += done < 0 ? n : 0; /* ENOBUFS: offered, and lost on this side of the link */
        sent += done < 0 ? n : (unsigned)done;
    }
    last = now();
    printf("{\"sent\": %" PRIu64 ", \"seconds\": %.6f, \"refused\": %" PRIu64 "}\n", sent,
           (double)(last - start) / 1e9, refused);
    for (int i = 1; i <= 3; i++) { /* behind everything that still waits in a queue */
        struct datagram end_mark = {END, 0};
        sleep_until(last + (uint64_t)i * 20 * MILLISECOND);
        send(fd, &end_mark, sizeof end_mark, 0);
    }
}

/* One of another size than was sent, as who knows no fragments makes of the first, has not been received. */
void udp_receive(int fd, size_t size, size_t early)
{
    static uint8_t seen[SEQUENCES / 8];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    struct timeval patience = {.tv_sec = 1};
    uint64_t received = early == size, again = 0, spoilt = early && early != size;
    int over = 0;
    seen[0] = early == size; /* the first datagram told that the sender is there */
    memset(messages, 0, sizeof messages);
    for (unsigned i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){buffer[i], DATAGRAM};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (!over) {
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0 && errno == ECONNREFUSED)
            continue;
        if (n < 0)
            break; /* silence: every end mark was lost */
        for (int i = 0; i < n; i++) {
            struct datagram d;
            if (messages[i].msg_len < sizeof d)
                continue;
            memcpy(&d, buffer[i], sizeof d);
            if (d.kind == END)
                over = 1;
            if (d.kind != DATA || d.sequence >= SEQUENCES)
                continue;
            if (messages[i].msg_len != size) {
                spoilt++;
                continue;
            }
            if (seen[d.sequence / 8] & 1 << d.sequence % 8) {
                again++;
                continue;
            }
            seen[d.sequence / 8] |= (uint8_t)(1 << d.sequence % 8);
            received++;
        }
    }
    printf("{\"received\": %" PRIu64 ", \"spoilt\": %" PRIu64 ", \"again\": %" PRIu64 "}\n", received, spoilt, again);
}
