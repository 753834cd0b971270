/* Datagrams of the guest: from frames to the sockets of their mappings. */
#define _GNU_SOURCE
#include "fast_udp_state.h"

#include <poll.h>

#define SEGMENTS 64      /* UDP_MAX_SEGMENTS of Linux before 6.9 */
#define MOST_TRAIN 65000 /* bytes of one message: what fits behind the headers of either family */

/* 1 if the checksum is right or may be taken for right, and the train's metadata make sense. */
static int check_metadata(const struct ts_fast *fast, const uint8_t *vnet, const uint8_t *udp, uint32_t at,
                          int family, struct ts_collected *frame)
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
    return ts_wire_verify(fast, udp, TS_UDP_HEADER + frame->size, 6, frame->ip, family, TS_PROTOCOL_UDP);
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_collected *frame = &state->batch[state->batch_count];
    const uint8_t *start = data + TS_FAST_VNET, *udp, *ip;
    enum ts_fragment fragment;
    uint32_t at, end;
    int family = 0;
    struct ts_udp_path *path;
    struct ts_udp_socket *socket;

    if (!state->shared.path_count || length <= TS_FAST_VNET)
        return 0;
    length -= TS_FAST_VNET;
    at = ts_fast_find_layer4(fast, start, length, TS_PROTOCOL_UDP, TS_UDP_HEADER, &family, &ip, &end);
    if (!at) {
        if (!may_be_udp(fast, start, length))
            return 0;
        fragment = ts_assembly_take(fast, data, length + TS_FAST_VNET, frame);
        state->batch_count += fragment == TS_FRAGMENT_LAST;
        if (fragment == TS_FRAGMENT_NOT)
            state->held = state->call;
        return fragment != TS_FRAGMENT_NOT;
    }
    udp = start + at;
    path = ts_udp_find(fast, ip + (family == 4 ? 12 : 8), family, udp);
    if (!path)
        return 0;
    socket = path->socket;
    memset(frame, 0, sizeof *frame);
    frame->path = path;
    frame->frame = data;
    frame->frame_length = length + TS_FAST_VNET;
    frame->order = fast->order;
    frame->ip = ip;
    frame->ip_length = (uint32_t)(start + end - ip);
    frame->payload = udp + TS_UDP_HEADER;
    frame->size = end - at - TS_UDP_HEADER;
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
static void give_back(struct ts_fast *fast, const struct ts_collected *frame)
{
    if (frame->assembly) {
        ts_assembly_leave(fast, frame->assembly);
        return;
    }
    ts_fast_leave(fast, frame->frame, frame->frame_length, 0, frame->order);
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
static void fill_message(struct msghdr *message, const struct ts_collected *frame, struct iovec *views,
                         uint32_t count, uint32_t segment, void *control)
{
    struct cmsghdr *at = NULL;
    int is_v4 = frame->path->family == 4, level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6;
    uint16_t each = (uint16_t)segment;

    memset(message, 0, sizeof *message);
    memset(control, 0, TS_UDP_CONTROL);
    message->msg_name = frame->path->target;
    message->msg_namelen = frame->path->target_length;
    message->msg_iov = views;
    message->msg_iovlen = count;
    message->msg_control = control;
    message->msg_controllen = TS_UDP_CONTROL;
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
    struct ts_collected *frames[TS_FAST_FRAMES];
    uint32_t count;
    struct mmsghdr messages[TS_FAST_FRAMES];
    uint32_t ends[TS_FAST_FRAMES]; /* of each message: the frame behind its last */
    struct iovec views[TS_FAST_FRAMES];
    union {
        struct cmsghdr aligned;
        char bytes[TS_UDP_CONTROL];
    } controls[TS_FAST_FRAMES];
};

/* The end of the train that begins with frame `at`: datagrams of one size but for the last, to the same place. */
static uint32_t find_train(const struct group *group, uint32_t at)
{
    const struct ts_collected *first = group->frames[at];
    uint32_t total = first->size, end = at + 1;

    if (first->segment || !first->size || first->assembly || !first->path->has_answered || first->path->is_single)
        return end;
    for (; end < group->count; end++) {
        const struct ts_collected *next = group->frames[end];

        total += next->size;
        if (next->path != first->path || next->segment || !next->size || next->assembly || next->size > first->size ||
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
        const struct ts_collected *first = group->frames[at];
        struct msghdr *message = &group->messages[count].msg_hdr;

        end = find_train(group, at);
        for (i = at; i < end; i++) {
            group->views[i].iov_base = (void *)(uintptr_t)group->frames[i]->payload;
            group->views[i].iov_len = group->frames[i]->size;
        }
        fill_message(message, first, &group->views[at], end - at, end - at > 1 ? first->size : first->segment,
                     &group->controls[count]);
        if (first->assembly) {
            message->msg_iov = first->assembly->views;
            message->msg_iovlen = first->assembly->count;
        }
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
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
            ts_udp_use_path(fast, group->frames[at]->path, group->frames[at]);
            group->frames[at]->path = NULL;
            if (group->frames[at]->assembly)
                group->frames[at]->assembly->state = TS_ASSEMBLY_FREE;
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; i < state->batch_count; i++)
        if (state->batch[i].path)
            send_group(fast, i);
    state->batch_count = 0;
}
