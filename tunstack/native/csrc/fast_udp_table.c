/* Which sockets and destinations of UDP the fast path carries, and in which order they were used. */
#define _GNU_SOURCE
#include "fast_udp_state.h"

#include <stdlib.h>

#define FIRST_CAPACITY 64

int ts_udp_new(struct ts_fast *fast)
{
    struct ts_udp_state *state = calloc(1, sizeof *state);
    uint8_t slot[8] = {0};
    uint32_t i;

    if (!state)
        return -1;
    fast->udp = &state->shared;
    state->call = 1;
    for (i = 0; i < TS_UDP_IDENTS; i++) {
        ts_put32(slot, i);
        state->idents[i] = (uint32_t)(ts_fast_hash(fast, slot, 4, slot) >> 32); /* nobody knows the seed */
    }
    return 0;
}

/* The sockets must have been closed. */
void ts_udp_free(struct ts_fast *fast)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);

    if (!state)
        return;
    ts_assembly_free(fast);
    free(state->memory);
    free(state->by_fd);
    free(state->buckets);
    free(state);
}

void ts_udp_reset(struct ts_fast *fast)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);

    ts_assembly_reset(fast);
    state->call++;
    state->shared.datagram_count = 0;
}

/* Which sockets and paths there are. */

struct ts_udp_socket *ts_udp_open(struct ts_fast *fast, int fd)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_udp_socket *socket;
    void *grown;
    size_t i;

    if (fd < 0)
        return NULL;
    if (!state->memory) {
        state->memory = malloc((size_t)TS_UDP_BURST * TS_UDP_DATAGRAM);
        if (!state->memory)
            return NULL;
        for (i = 0; i < TS_UDP_BURST; i++)
            state->buffers[i] = state->memory + i * TS_UDP_DATAGRAM;
    }
    grown = ts_fast_grow(state->by_fd, &state->fd_capacity, fd);
    if (!grown)
        return NULL;
    state->by_fd = grown;
    socket = state->by_fd[fd] ? NULL : calloc(1, sizeof *socket);
    if (socket) {
        socket->fd = fd;
        state->by_fd[fd] = socket;
        state->shared.socket_count++;
    }
    return socket;
}

static void forget_recent(struct ts_udp *udp, struct ts_udp_socket *socket)
{
    if (!socket->is_recent)
        return;
    socket->is_recent = 0;
    *(socket->older ? &socket->older->newer : &udp->recent_oldest) = socket->newer;
    *(socket->newer ? &socket->newer->older : &udp->recent_newest) = socket->older;
    socket->older = socket->newer = NULL;
}

void ts_udp_close(struct ts_fast *fast, struct ts_udp_socket *socket)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    forget_recent(&state->shared, socket);
    for (i = 0; i < state->shared.datagram_count; i++)
        if (state->shared.datagrams[i].socket == socket)
            state->shared.datagrams[i].socket = NULL;
    state->by_fd[socket->fd] = NULL;
    state->shared.socket_count--;
    free(socket);
}

struct ts_udp_path *ts_udp_path_new(void)
{
    return calloc(1, sizeof(struct ts_udp_path));
}

struct ts_udp_path *ts_udp_find(const struct ts_fast *fast, const uint8_t *addresses, int family,
                                const uint8_t *ports)
{
    const struct ts_udp_state *state = ts_udp_state_of(fast);
    uint64_t hash = ts_fast_hash(fast, addresses, family, ports);
    struct ts_udp_path *path = state->buckets[hash & (state->capacity - 1)];

    while (path && (path->hash != hash || path->family != family || memcmp(path->ports, ports, 4) ||
                    memcmp(path->address, addresses, family == 4 ? 8 : 32)))
        path = path->next;
    return path;
}

/* Room for one more path; -1 without memory. */
static int make_room(struct ts_udp_state *state)
{
    uint32_t capacity = state->capacity ? 2 * state->capacity : FIRST_CAPACITY, i;
    struct ts_udp_path **fresh, *path;

    if (state->shared.path_count < state->capacity)
        return 0;
    fresh = calloc(capacity, sizeof *fresh);
    if (!fresh)
        return -1;
    for (i = 0; i < state->capacity; i++)
        while ((path = state->buckets[i])) {
            struct ts_udp_path **bucket = &fresh[path->hash & (capacity - 1)];

            state->buckets[i] = path->next;
            path->next = *bucket;
            *bucket = path;
        }
    free(state->buckets);
    state->buckets = fresh;
    state->capacity = capacity;
    return 0;
}

static void fill_target(struct ts_udp_path *path)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;

    if (path->family == 4) {
        memset(&v4, 0, sizeof v4);
        v4.sin_family = AF_INET;
        v4.sin_port = htons(path->peer_port);
        memcpy(&v4.sin_addr, path->peer, 4);
        memcpy(path->target, &v4, sizeof v4);
        path->target_length = sizeof v4;
    } else {
        memset(&v6, 0, sizeof v6);
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(path->peer_port);
        memcpy(&v6.sin6_addr, path->peer, 16);
        memcpy(path->target, &v6, sizeof v6);
        path->target_length = sizeof v6;
    }
}

/* `path` becomes the first of its socket's. */
static void push(struct ts_udp_socket *socket, struct ts_udp_path *path)
{
    path->newer = NULL;
    path->older = socket->newest;
    *(socket->newest ? &socket->newest->newer : &socket->oldest) = path;
    socket->newest = path;
}

static void unlink_path(struct ts_udp_path *path)
{
    struct ts_udp_socket *socket = path->socket;

    *(path->newer ? &path->newer->older : &socket->newest) = path->older;
    *(path->older ? &path->older->newer : &socket->oldest) = path->newer;
}

int ts_udp_offer(struct ts_fast *fast, struct ts_udp_socket *socket, struct ts_udp_path *path)
{
    static const uint8_t no_ports[4];
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_udp_path **bucket;

    if ((path->family != 4 && path->family != 6) || path->head_length > TS_FAST_HEAD || make_room(state) ||
        ts_udp_find(fast, path->address, path->family, path->ports)) {
        free(path);
        return -1;
    }
    fill_target(path);
    path->hash = ts_fast_hash(fast, path->address, path->family, path->ports);
    path->ident_slot = ts_fast_hash(fast, path->address, path->family, no_ports) & (TS_UDP_IDENTS - 1);
    bucket = &state->buckets[path->hash & (state->capacity - 1)];
    path->next = *bucket;
    *bucket = path;
    path->socket = socket;
    /* Not used here yet: behind those that were, so that these stay the first of the list. */
    path->newer = socket->oldest;
    path->older = NULL;
    *(socket->oldest ? &socket->oldest->older : &socket->newest) = path;
    socket->oldest = path;
    socket->path_count++;
    state->shared.path_count++;
    return 0;
}

void ts_udp_withdraw(struct ts_fast *fast, struct ts_udp_path *path)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_udp_path **at = &state->buckets[path->hash & (state->capacity - 1)];

    while (*at != path)
        at = &(*at)->next;
    *at = path->next;
    ts_assembly_orphan(fast, path);
    unlink_path(path);
    path->socket->path_count--;
    state->shared.path_count--;
    free(path);
}

/* Order of use. */

void ts_udp_use_socket(struct ts_fast *fast, struct ts_udp_socket *socket)
{
    struct ts_udp *udp = fast->udp;

    socket->last_used = fast->now;
    if (socket->is_recent && !socket->newer)
        return;
    forget_recent(udp, socket);
    socket->is_recent = 1;
    socket->older = udp->recent_newest;
    *(udp->recent_newest ? &udp->recent_newest->newer : &udp->recent_oldest) = socket;
    udp->recent_newest = socket;
}

void ts_udp_use_path(struct ts_fast *fast, struct ts_udp_path *path, const struct ts_collected *sent)
{
    ts_udp_use_socket(fast, path->socket);
    path->is_used = 1;
    if (path->newer) {
        unlink_path(path);
        push(path->socket, path);
    }
    path->quote_length = sent->ip_length < TS_UDP_QUOTE ? sent->ip_length : TS_UDP_QUOTE;
    memcpy(path->quote, sent->ip, path->quote_length);
}

void ts_udp_seen(struct ts_fast *fast)
{
    while (fast->udp->recent_oldest)
        forget_recent(fast->udp, fast->udp->recent_oldest);
}

void ts_udp_seen_paths(struct ts_udp_socket *socket)
{
    struct ts_udp_path *path;

    for (path = socket->newest; path && path->is_used; path = path->older)
        path->is_used = 0;
}
