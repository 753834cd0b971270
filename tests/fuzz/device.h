/* The device of a fast path under a fuzz target: one end of a socketpair, and the guest at the other. */
#ifndef TUNSTACK_FUZZ_DEVICE_H
#define TUNSTACK_FUZZ_DEVICE_H

#include "fastpath.h"
#include "fuzz.h"

#include <sys/socket.h>
#include <unistd.h>

static inline void watch(struct ts_fast *fast, int fd, uint32_t events)
{
    struct epoll_event event;

    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.fd = fd;
    CHECK(!epoll_ctl(fast->epoll_fd, EPOLL_CTL_ADD, fd, &event));
}

/* Returns the guest's end; `size` bytes are room for at the most in each direction. */
static inline int open_device(struct ts_fast *fast, int l2, int size)
{
    int ends[2];

    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends));
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    fast->epoll_fd = epoll_create1(0);
    CHECK(fast->epoll_fd >= 0);
    fast->device_fd = ends[0];
    fast->l2 = (uint8_t)l2;
    memcpy(fast->mac, gateway_mac, 6);
    watch(fast, ends[0], EPOLLIN);
    return ends[1];
}

/* The device, the guest's end of it, and the fast path. */
static inline void close_device(struct ts_fast *fast, int guest)
{
    close(fast->epoll_fd);
    close(fast->device_fd);
    close(guest);
    ts_fast_free(fast);
}

/* The packet that the device did not take at `*at`, which moves on; NULL behind the last. */
static inline const uint8_t *next_refused(const struct ts_fast *fast, uint32_t *at, uint32_t *length)
{
    const struct ts_frame *refused = &fast->refused;
    const uint8_t *data;

    if (*at == refused->length)
        return NULL;
    data = refused->data + *at + 4;
    memcpy(length, data - 4, 4);
    CHECK(*length <= refused->length - *at - 4);
    *at += 4 + *length;
    return data;
}

#endif
