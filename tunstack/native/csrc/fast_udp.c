/* Datagrams of the fast path; fast_udp.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_udp.h"
#include "fast_wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#define FIRST_CAPACITY 64
#define HEADER 8
#define SEGMENTS 64 /* UDP_MAX_SEGMENTS of Linux before 6.9 */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#define MOST_TRAIN 65000 /* bytes of one message: what fits behind the headers of either family */
/* TTL, TOS and the size of a train's datagrams, each an int or less. */
#define CONTROL (3 * CMSG_SPACE(sizeof(int)))

/* A frame that waits for the end of the batch. */
struct collected {
    struct ts_udp_path *path; /* NULL: dealt with */
    uint8_t *frame;           /* as it was read */
    uint32_t frame_length;
    const uint8_t *ip, *payload;
    uint32_t ip_length, size, segment;
    int hop_limit, traffic_class;
};

/* What only this file knows. */
struct state {
    struct ts_udp shared; /* first: `ts_fast.udp` points here */
    uint64_t call;
    uint64_t held; /* the call in which a datagram whose path cannot be told went to Python */
    struct ts_udp_path **buckets;
    uint32_t capacity;
    struct ts_udp_socket **by_fd;
    int32_t fd_capacity;
    struct collected batch[TS_FAST_FRAMES];
    uint32_t batch_count;
    uint8_t *memory, *buffers[TS_UDP_BURST];
};

static struct state *state_of(const struct ts_fast *fast)
{
    return (struct state *)(void *)fast->udp;
}

int ts_udp_new(struct ts_fast *fast)
{
    struct state *state = calloc(1, sizeof *state);

    if (!state)
        return -1;
    fast->udp = &state->shared;
    state->call = 1;
    return 0;
}

/* The sockets must have been closed. */
void ts_udp_free(struct ts_fast *fast)
{
    struct state *state = state_of(fast);

    if (!state)
        return;
    free(state->memory);
    free(state->by_fd);
    free(state->buckets);
    free(state);
}

void ts_udp_reset(struct ts_fast *fast)
{
    struct state *state = state_of(fast);

    state->call++;
    state->shared.datagram_count = 0;
}

/* Which sockets and paths there are. */

struct ts_udp_socket *ts_udp_open(struct ts_fast *fast, int fd)
{
    struct state *state = state_of(fast);
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
    struct state *state = state_of(fast);
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

static struct ts_udp_path *find(const struct ts_fast *fast, const uint8_t *addresses, int family,
                                const uint8_t *ports)
{
    const struct state *state = state_of(fast);
    uint64_t hash = ts_fast_hash(fast, addresses, family, ports);
    struct ts_udp_path *path = state->buckets[hash & (state->capacity - 1)];

    while (path && (path->hash != hash || path->family != family || memcmp(path->ports, ports, 4) ||
                    memcmp(path->address, addresses, family == 4 ? 8 : 32)))
        path = path->next;
    return path;
}

/* Room for one more path; -1 without memory. */
static int make_room(struct state *state)
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
    struct state *state = state_of(fast);
    struct ts_udp_path **bucket;

    if ((path->family != 4 && path->family != 6) || path->head_length > TS_FAST_HEAD || make_room(state) ||
        find(fast, path->address, path->family, path->ports)) {
        free(path);
        return -1;
    }
    fill_target(path);
    path->hash = ts_fast_hash(fast, path->address, path->family, path->ports);
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
    struct state *state = state_of(fast);
    struct ts_udp_path **at = &state->buckets[path->hash & (state->capacity - 1)];

    while (*at != path)
        at = &(*at)->next;
    *at = path->next;
    unlink_path(path);
    path->socket->path_count--;
    state->shared.path_count--;
    free(path);
}

/* Order of use. */

static void use_socket(struct ts_fast *fast, struct ts_udp_socket *socket)
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

static void use_path(struct ts_fast *fast, struct ts_udp_path *path, const struct collected *sent)
{
    use_socket(fast, path->socket);
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

/* Up. */

/* 1 if the checksum is right or may be taken for right, and the train's metadata make sense. */
static int check_metadata(const struct ts_fast *fast, const uint8_t *vnet, const uint8_t *udp, uint32_t at,
                          int family, struct collected *frame)
{
    uint32_t gso_type = vnet[1] & ~TS_GSO_ECN;
    uint16_t start, offset, gso_size;

    memcpy(&gso_size, vnet + 4, 2);
    memcpy(&start, vnet + 6, 2);
    memcpy(&offset, vnet + 8, 2);
    if (vnet[1]) {
        if (gso_type != TS_GSO_UDP_L4 || !gso_size || frame->size > (uint32_t)SEGMENTS * gso_size)
            return 0;
        frame->segment = frame->size > gso_size ? gso_size : 0;
    }
    if (vnet[0] & TS_NEEDS_CHECKSUM)
        return start == at && offset == 6;
    if (vnet[0] & TS_DATA_VALID)
        return 1;
    if (!ts_get16(udp + 6))
        return family == 4;
    return ts_wire_verify(fast, udp, HEADER + frame->size, 6, frame->ip, family, TS_PROTOCOL_UDP);
}

/* What is no plain datagram may still be one, of any path: a fragment, or one behind options. */
static int may_be_udp(const struct ts_fast *fast, const uint8_t *frame, uint32_t length)
{
    const uint8_t *ip = frame + (fast->l2 ? TS_ETHERNET : 0);

    if (length < (fast->l2 ? TS_ETHERNET : 0) + 20u)
        return 0;
    if (*ip >> 4 == 4)
        return ip[9] == TS_PROTOCOL_UDP;
    return *ip >> 4 == 6 && ip[6] != TS_PROTOCOL_TCP && ip[6] != TS_PROTOCOL_ICMPV6;
}

int ts_udp_receive(struct ts_fast *fast, uint8_t *data, uint32_t length)
{
    struct state *state = state_of(fast);
    struct collected *frame = &state->batch[state->batch_count];
    const uint8_t *start = data + TS_FAST_VNET, *udp, *ip;
    uint32_t at, end;
    int family = 0;
    struct ts_udp_path *path;
    struct ts_udp_socket *socket;

    if (!state->shared.path_count || length <= TS_FAST_VNET)
        return 0;
    length -= TS_FAST_VNET;
    at = ts_fast_find_layer4(fast, start, length, TS_PROTOCOL_UDP, HEADER, &family, &ip, &end);
    if (!at) {
        if (may_be_udp(fast, start, length))
            state->held = state->call;
        return 0;
    }
    udp = start + at;
    path = find(fast, ip + (family == 4 ? 12 : 8), family, udp);
    if (!path)
        return 0;
    socket = path->socket;
    memset(frame, 0, sizeof *frame);
    frame->path = path;
    frame->frame = data;
    frame->frame_length = length + TS_FAST_VNET;
    frame->ip = ip;
    frame->ip_length = (uint32_t)(start + end - ip);
    frame->payload = udp + HEADER;
    frame->size = end - at - HEADER;
    frame->traffic_class = family == 4 ? ip[1] : (ip[0] << 4 | ip[1] >> 4) & 0xff;
    frame->hop_limit = (family == 4 ? ip[8] : ip[7]) - !path->is_own;
    if (socket->held == state->call || state->held == state->call || ts_get16(udp + 4) != end - at ||
        (fast->l2 && memcmp(start + 6, socket->mac, 6)) ||
        (family == 4 && !(ip[6] & 0x40) != !socket->dont_fragment) ||
        !check_metadata(fast, data, udp, at, family, frame)) {
        socket->held = state->call;
        return 0;
    }
    state->batch_count++;
    return 1;
}

/* Python is to handle a frame after all; they stay in the order in which they came. */
static void give_back(struct ts_fast *fast, const struct collected *frame)
{
    uint32_t at = fast->frame_count++;

    for (; at && fast->frames[at - 1].data > frame->frame; at--)
        fast->frames[at] = fast->frames[at - 1];
    fast->frames[at].data = frame->frame;
    fast->frames[at].length = frame->frame_length;
    fast->frames_fast--;
}

static void put_control(struct msghdr *message, struct cmsghdr **at, int level, int type, const void *value,
                        size_t size)
{
    struct cmsghdr *control = *at ? CMSG_NXTHDR(message, *at) : CMSG_FIRSTHDR(message);

    control->cmsg_level = level;
    control->cmsg_type = type;
    control->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(control), value, size);
    *at = control;
}

/* `frame`, and with more than one view the frames that follow it in its train of `segment` bytes each. */
static void fill_message(struct msghdr *message, const struct collected *frame, struct iovec *views,
                         uint32_t count, uint32_t segment, void *control)
{
    struct cmsghdr *at = NULL;
    int is_v4 = frame->path->family == 4, level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6;
    uint16_t each = (uint16_t)segment;

    memset(message, 0, sizeof *message);
    memset(control, 0, CONTROL);
    message->msg_name = frame->path->target;
    message->msg_namelen = frame->path->target_length;
    message->msg_iov = views;
    message->msg_iovlen = count;
    message->msg_control = control;
    message->msg_controllen = CONTROL;
    put_control(message, &at, level, is_v4 ? IP_TTL : IPV6_HOPLIMIT, &frame->hop_limit, sizeof(int));
    put_control(message, &at, level, is_v4 ? IP_TOS : IPV6_TCLASS, &frame->traffic_class, sizeof(int));
    if (each)
        put_control(message, &at, SOL_UDP, UDP_SEGMENT, &each, sizeof each);
    message->msg_controllen = 2 * CMSG_SPACE(sizeof(int)) + (each ? CMSG_SPACE(sizeof each) : 0);
}

/* Whether errors of earlier datagrams wait at the socket. */
static int has_errors(int fd)
{
    struct pollfd one = {fd, 0, 0};

    return poll(&one, 1, 0) > 0 && one.revents & POLLERR;
}

/* What is sent for one socket: frames in order, and messages of one or more of them each. */
struct group {
    struct collected *frames[TS_FAST_FRAMES];
    uint32_t count;
    struct mmsghdr messages[TS_FAST_FRAMES];
    uint32_t ends[TS_FAST_FRAMES]; /* of each message: the frame behind its last */
    struct iovec views[TS_FAST_FRAMES];
    union {
        struct cmsghdr aligned;
        char bytes[CONTROL];
    } controls[TS_FAST_FRAMES];
};

/* The end of the train that begins with frame `at`: datagrams of one size but for the last, to the same place. */
static uint32_t find_train(const struct group *group, uint32_t at)
{
    const struct collected *first = group->frames[at];
    uint32_t total = first->size, end = at + 1;

    if (first->segment || !first->size || !first->path->has_answered || first->path->is_single)
        return end;
    for (; end < group->count; end++) {
        const struct collected *next = group->frames[end];

        total += next->size;
        if (next->path != first->path || next->segment || !next->size || next->size > first->size ||
            group->frames[end - 1]->size != first->size || next->hop_limit != first->hop_limit ||
            next->traffic_class != first->traffic_class || total > MOST_TRAIN)
            break;
    }
    return end;
}

/* The messages for the frames from `at` on; returns how many. */
static uint32_t fill_messages(struct group *group, uint32_t at)
{
    uint32_t count = 0, end, i;

    for (; at < group->count; at = end) {
        const struct collected *first = group->frames[at];

        end = find_train(group, at);
        for (i = at; i < end; i++) {
            group->views[i].iov_base = (void *)(uintptr_t)group->frames[i]->payload;
            group->views[i].iov_len = group->frames[i]->size;
        }
        fill_message(&group->messages[count].msg_hdr, first, &group->views[at], end - at,
                     end - at > 1 ? first->size : first->segment, &group->controls[count]);
        group->ends[count++] = end;
    }
    return count;
}

/*
 * Send the frames as far as the socket takes them without an error, and return the first that is
 * left. A train of which the kernel thinks nothing (no offload, larger than the path's MTU) goes one by one.
 */
static uint32_t send_messages(struct ts_fast *fast, struct ts_udp_socket *socket, struct group *group)
{
    struct state *state = state_of(fast);
    uint32_t at = 0, done = 0, left = fill_messages(group, at);

    while (done < left) {
        int sent = sendmmsg(socket->fd, group->messages + done, left - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        int is_cut = sent > 0 && (uint32_t)sent < left - done;
        uint32_t end;

        if (sent < 0) {
            end = group->ends[done];
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                if (end - at > 1) {
                    group->frames[at]->path->is_single = 1;
                    left = fill_messages(group, at);
                    done = 0;
                    continue;
                }
                if (errno != ENOBUFS || group->frames[at]->segment) {
                    group->frames[at]->path->has_answered = 0;
                    socket->has_failed = 1;
                    return at;
                }
            }
            state->shared.socket_full += end - at;
            sent = 1;
        } else {
            end = group->ends[done + (uint32_t)sent - 1];
            state->shared.datagrams_up += end - at;
        }
        for (; at < end; at++) {
            use_path(fast, group->frames[at]->path, group->frames[at]);
            group->frames[at]->path = NULL;
        }
        done += (uint32_t)sent;
        /* Why the next one did not go is not told; it was an error of an earlier one if there is any. */
        if (is_cut && has_errors(socket->fd)) {
            group->frames[at]->path->has_answered = 0;
            socket->has_failed = 1;
            return at;
        }
    }
    return at;
}

/* Send what was collected for the socket of frame `first`, in order. */
static void send_group(struct ts_fast *fast, uint32_t first)
{
    struct state *state = state_of(fast);
    struct ts_udp_socket *socket = state->batch[first].path->socket;
    struct group group;
    uint32_t at, i;

    group.count = 0;
    for (i = first; i < state->batch_count; i++)
        if (state->batch[i].path && state->batch[i].path->socket == socket)
            group.frames[group.count++] = &state->batch[i];
    for (at = send_messages(fast, socket, &group); at < group.count; at++) {
        give_back(fast, group.frames[at]);
        group.frames[at]->path = NULL;
    }
}

void ts_udp_send(struct ts_fast *fast)
{
    struct state *state = state_of(fast);
    uint32_t i;

    for (i = 0; i < state->batch_count; i++)
        if (state->batch[i].path)
            send_group(fast, i);
    state->batch_count = 0;
}

/* Down. */

/* One packet, or with `segment` a train of them that the device cuts. */
static void emit(struct ts_fast *fast, struct ts_udp_path *path, uint32_t traffic_class,
                 const uint8_t *payload, uint32_t size, uint32_t segment)
{
    uint8_t head[TS_FAST_VNET + TS_FAST_HEAD + HEADER];
    uint8_t *ip = head + TS_FAST_VNET + path->link_length, *udp = head + TS_FAST_VNET + path->head_length;
    struct iovec views[2];

    if (fast->refused.length > TS_UDP_REFUSED) {
        fast->udp->queue_full++;
        return;
    }
    memset(head, 0, TS_FAST_VNET);
    memcpy(head + TS_FAST_VNET, path->head, path->head_length);
    head[0] = TS_NEEDS_CHECKSUM;
    head[1] = segment ? TS_GSO_UDP_L4 : 0;
    ts_put_native16(head + 2, path->head_length + HEADER);
    ts_put_native16(head + 4, segment);
    ts_put_native16(head + 6, path->head_length);
    ts_put_native16(head + 8, 6);
    if (path->family == 4) {
        ip[1] = (uint8_t)traffic_class;
        ts_put16(ip + 2, 20 + HEADER + size);
        ts_put16(ip + 4, path->ident);
        ts_put16(ip + 10, 0);
        ts_put16(ip + 10, ts_checksum(ip, 20, 0));
        path->ident = (uint16_t)(path->ident + (segment ? (size + segment - 1) / segment : 1));
    } else {
        ip[0] = (uint8_t)(0x60 | traffic_class >> 4);
        ip[1] = (uint8_t)(traffic_class << 4);
        ts_put16(ip + 4, HEADER + size);
    }
    memcpy(udp, path->ports + 2, 2);
    memcpy(udp + 2, path->ports, 2);
    ts_put16(udp + 4, HEADER + size);
    ts_put16(udp + 6, ts_folded(path->pseudo_sum + HEADER + size));
    views[0].iov_base = head;
    views[0].iov_len = TS_FAST_VNET + path->head_length + HEADER;
    views[1].iov_base = (void *)(uintptr_t)payload;
    views[1].iov_len = size;
    ts_fast_transmit(fast, views, size ? 2 : 1);
}

/* 1 if the datagram, or the train, has gone to the device; 0 if it does not fit. */
static int carry(struct ts_fast *fast, struct ts_udp_path *path, const struct ts_datagram *datagram)
{
    uint32_t header = (path->family == 4 ? 20 : 40) + HEADER;
    uint32_t size = datagram->segment ? datagram->segment : datagram->length, at = 0;

    if (size + header > fast->udp->mtu)
        return 0;
    if (datagram->segment && fast->udp->uso && datagram->length + header <= 65535) {
        emit(fast, path, datagram->traffic_class, datagram->data, datagram->length, size);
    } else {
        do {
            uint32_t rest = datagram->length - at;

            emit(fast, path, datagram->traffic_class, datagram->data + at, rest < size ? rest : size, 0);
            at += size;
        } while (at < datagram->length);
    }
    fast->udp->datagrams_down += datagram->segment ? (datagram->length + size - 1) / size : 1;
    path->has_answered = 1;
    use_socket(fast, path->socket);
    return 1;
}

/* What a message is, but for its path. */
static void read_message(struct msghdr *message, uint32_t length, struct ts_datagram *datagram)
{
    struct cmsghdr *control;
    const struct sockaddr *name = message->msg_name;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    int number;

    memset(datagram, 0, sizeof *datagram);
    datagram->data = message->msg_iov->iov_base;
    datagram->length = length;
    if (name->sa_family == AF_INET) {
        memcpy(&v4, name, sizeof v4);
        datagram->port = ntohs(v4.sin_port);
        datagram->address_length = 4;
        memcpy(datagram->address, &v4.sin_addr, 4);
    } else {
        memcpy(&v6, name, sizeof v6);
        datagram->port = ntohs(v6.sin6_port);
        datagram->scope = v6.sin6_scope_id;
        datagram->address_length = 16;
        memcpy(datagram->address, &v6.sin6_addr, 16);
    }
    for (control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        number = *CMSG_DATA(control);
        if (control->cmsg_len >= CMSG_LEN(sizeof number))
            memcpy(&number, CMSG_DATA(control), sizeof number);
        if ((control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_TOS) ||
            (control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_TCLASS))
            datagram->traffic_class = (uint32_t)number & 0xff;
        else if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_GRO && number > 0 &&
                 (uint32_t)number < length)
            datagram->segment = (uint32_t)number;
    }
}

static struct ts_udp_path *find_sender(const struct ts_udp_socket *socket, const struct ts_datagram *datagram)
{
    struct ts_udp_path *path;

    for (path = datagram->scope ? NULL : socket->newest; path; path = path->older)
        if (path->peer_port == datagram->port && !memcmp(path->peer, datagram->address, datagram->address_length))
            break;
    return path;
}

/* Read up to a burst; 0 if the socket has an error to tell. */
static int read_socket(struct ts_fast *fast, struct ts_udp_socket *socket)
{
    struct state *state = state_of(fast);
    struct ts_udp *udp = &state->shared;
    struct mmsghdr messages[TS_UDP_BURST];
    struct iovec views[TS_UDP_BURST];
    union {
        struct sockaddr any;
        struct sockaddr_in6 v6;
    } names[TS_UDP_BURST];
    union {
        struct cmsghdr aligned;
        char bytes[CONTROL];
    } controls[TS_UDP_BURST];
    uint32_t base = udp->datagram_count, i;
    int count;

    for (i = 0; base + i < TS_UDP_BURST; i++) {
        struct msghdr *message = &messages[i].msg_hdr;

        memset(message, 0, sizeof *message);
        views[i].iov_base = state->buffers[base + i];
        views[i].iov_len = TS_UDP_DATAGRAM;
        message->msg_name = &names[i];
        message->msg_namelen = sizeof names[i];
        message->msg_iov = &views[i];
        message->msg_iovlen = 1;
        message->msg_control = &controls[i];
        message->msg_controllen = sizeof controls[i];
    }
    if (!i)
        return 1; /* it is still ready in the next round */
    count = recvmmsg(socket->fd, messages, i, MSG_DONTWAIT, NULL);
    if (count < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    for (i = 0; i < (uint32_t)count; i++) {
        struct ts_datagram *datagram = &udp->datagrams[udp->datagram_count];
        struct ts_udp_path *path;
        uint8_t *buffer = state->buffers[base + i];

        read_message(&messages[i].msg_hdr, messages[i].msg_len, datagram);
        path = socket->held == state->call ? NULL : find_sender(socket, datagram);
        if (path && carry(fast, path, datagram))
            continue;
        socket->held = state->call;
        datagram->socket = socket;
        state->buffers[base + i] = state->buffers[udp->datagram_count];
        state->buffers[udp->datagram_count++] = buffer;
    }
    return 1;
}

int ts_udp_serve(struct ts_fast *fast, int fd, uint32_t *events)
{
    struct state *state = state_of(fast);
    struct ts_udp_socket *socket = fd >= 0 && fd < state->fd_capacity ? state->by_fd[fd] : NULL;
    struct ts_udp_path *path;

    if (!socket)
        return 0;
    if (!(*events & ~(uint32_t)EPOLLIN)) {
        if (read_socket(fast, socket))
            return 1;
        *events |= EPOLLERR;
    }
    for (path = socket->newest; path; path = path->older) /* whose error it is Python finds out */
        path->has_answered = 0;
    return 0;
}
