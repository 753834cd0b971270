/*
 * UDP in the fast path under a program: the input is read as operations on mappings, the guest, the hosts and
 * time. Sockets and hosts are real ones of the loopback. Paths are sound when they are offered (as
 * tunstack.nat.fast_udp fills them in), all else is arbitrary.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "device.h"
#include "faults.h"
#include "udp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>

static const uint32_t sizes[] = {100, 0, 1, 7, 8, 1400, 1472, 1473, 9000, 3000, 65507, 65000};
static const uint32_t segments[] = {0, 0, 0, 100, 1400, 8, 5, 60000, 30};
static const uint32_t mtus[] = {1500, 65535, 100, 576};
static const double waits[] = {0, 0.001, 1, 100};
static const int errors[] = {EAGAIN, EINTR, EIO, EBADFD, EINVAL, EPIPE, ENOBUFS, ECONNREFUSED, EMSGSIZE};

int hosts[2][HOSTS];
uint16_t host_ports[2][HOSTS];

static uint8_t scratch[TS_FAST_FRAME + 65536];

/* A socket of the loopback; its port goes to `port`. */
static int open_socket(int is_v6, uint16_t *port)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = is_v6 ? sizeof v6 : sizeof v4;
    struct sockaddr *name = is_v6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);

    CHECK(fd >= 0 && !bind(fd, name, size) && !getsockname(fd, name, &size));
    *port = ntohs(is_v6 ? v6.sin6_port : v4.sin_port);
    return fd;
}

static void open_hosts(void)
{
    int which, host;

    if (host_ports[0][0])
        return;
    for (which = 0; which < 2; which++) {
        for (host = 0; host < HOSTS; host++)
            hosts[which][host] = open_socket(which, &host_ports[which][host]);
        close(hosts[which][SILENT]);
        hosts[which][SILENT] = -1;
    }
}

static struct slot *pick_slot(struct world *world, struct input *input)
{
    return &world->slots[take8(input) % SLOTS];
}

/* As `DatagramSocket` sets it up. */
static void open_slot(struct world *world, struct slot *slot, uint32_t how)
{
    int is_v6 = how & 1, on = 1;

    if (slot->socket)
        return;
    memset(slot, 0, sizeof *slot);
    slot->family = is_v6 ? 6 : 4;
    slot->last_up = slot->last_down = world->before;
    slot->fd = open_socket(is_v6, &slot->port);
    setsockopt(slot->fd, is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, is_v6 ? IPV6_RECVERR : IP_RECVERR, &on, sizeof on);
    setsockopt(slot->fd, is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, is_v6 ? IPV6_RECVTCLASS : IP_RECVTOS, &on, sizeof on);
    setsockopt(slot->fd, SOL_UDP, UDP_GRO, &on, sizeof on);
    CHECK(!ts_udp_open(world->fast, -1));
    slot->socket = ts_udp_open(world->fast, slot->fd);
    if (!slot->socket) {
        CHECK(!faults.allocation);
        close(slot->fd);
        return;
    }
    CHECK(!ts_udp_open(world->fast, slot->fd)); /* it is taken */
    memcpy(slot->socket->mac, guest_mac, 6);
    slot->socket->dont_fragment = is_v6 || how & 2;
    watch(world->fast, slot->fd, EPOLLIN);
}

/* The key of the path from `slot` to `host` as it stands in frames; returns its length. */
static size_t put_path_key(uint8_t *at, int family, uint32_t slot, uint32_t host)
{
    size_t size = put_key(at, family, slot);

    ts_put16(at + size - 2, HOST_PORT + host);
    return size;
}

static void offer(struct world *world, struct input *input)
{
    struct slot *slot = pick_slot(world, input);
    uint32_t host = take8(input) % STRANGER, how = take8(input);
    struct ts_fast *fast = world->fast;
    struct ts_udp_path *path;
    struct shape shape = {.l2 = fast->l2, .family = slot->family, .udp = 1, .ttl = 64};
    struct in6_addr loopback = IN6ADDR_LOOPBACK_INIT;
    size_t size;
    int fails, must;

    if (!slot->socket || !(path = ts_udp_path_new()))
        return;
    shape.id = (uint32_t)(slot - world->slots);
    path->family = (uint8_t)slot->family;
    size = put_path_key(scratch, slot->family, shape.id, host);
    memcpy(path->address, scratch, size - 4);
    memcpy(path->ports, scratch + size - 4, 4);
    path->link_length = fast->l2 ? TS_ETHERNET : 0;
    path->head_length = path->link_length + (slot->family == 4 ? 20 : 40);
    put_headers(scratch, &shape);
    memcpy(path->head, scratch, path->head_length);
    memcpy(path->head, guest_mac, fast->l2 ? 6 : 0);
    path->pseudo_sum = plain_pseudo(path->head + path->link_length, TS_PROTOCOL_UDP, 0);
    path->peer_port = host_ports[slot->family == 6][host];
    memcpy(path->peer, slot->family == 4 ? (const uint8_t *)"\x7f\0\0\1" : loopback.s6_addr,
           slot->family == 4 ? 4 : 16);
    path->is_own = how & 1;
    if (!(how & 0x70)) /* one that cannot be */
        *(how & 2 ? (uint8_t *)&path->head_length : &path->family) = 99;
    must = is_taken(world, path) || path->head_length == 99 || path->family == 99;
    fails = ts_udp_offer(fast, slot->socket, path);
    CHECK(!must || fails);
    if (!fails)
        slot->paths[host] = path;
}

static void withdraw(struct world *world, struct slot *slot, uint32_t host)
{
    if (slot->paths[host])
        ts_udp_withdraw(world->fast, slot->paths[host]);
    slot->paths[host] = NULL;
}

static void close_slot(struct world *world, struct slot *slot)
{
    uint32_t host;

    if (!slot->socket)
        return;
    for (host = 0; host < HOSTS; host++)
        withdraw(world, slot, host);
    ts_udp_close(world->fast, slot->socket);
    close(slot->fd);
    slot->socket = NULL;
}

/* What may stand in the virtio-net header of a frame with a train of `segment`. */
static void put_metadata(struct input *input, uint32_t how, uint32_t which, size_t header, uint32_t segment,
                         const struct shape *shape)
{
    static const uint8_t types[] = {5, 0x85, 5, 1, 4, 3};
    uint8_t *udp = scratch + TS_FAST_VNET + header - 8;

    memset(scratch, 0, TS_FAST_VNET);
    if (how & 32 && how & 64)
        udp[6] ^= 1; /* a wrong checksum */
    if (how & 32) {
        scratch[0] = 1;
        ts_put_native16(scratch + 6, (uint32_t)header - 8 + (which & 128 ? take8(input) : 0));
        ts_put_native16(scratch + 8, 6);
    } else if (how & 64) {
        scratch[0] = 2;
    } else if (which & 64) {
        ts_put16(udp + 6, 0);
    }
    if (segment && shape->size) {
        scratch[1] = PICK(input, types);
        ts_put_native16(scratch + 4, segment);
    }
}

static void guest_sends(struct world *world, struct input *input)
{
    uint32_t at = take8(input) % SLOTS, host = take8(input) % HOSTS, how = take8(input), which = take8(input);
    struct slot *slot = &world->slots[at];
    struct shape shape = {.l2 = world->fast->l2, .udp = 1, .ttl = 64, .id = at};
    uint8_t *frame = scratch + TS_FAST_VNET, *ip = frame + (world->fast->l2 ? TS_ETHERNET : 0);
    uint32_t segment = PICK(input, segments);
    size_t header, length;

    shape.family = slot->family == 6 ? 6 : 4;
    shape.size = PICK(input, sizes);
    if (how & 1) {
        shape.ttl = (uint8_t)take8(input);
        shape.mark = (uint8_t)(take8(input) & 15);
    }
    header = put_headers(frame, &shape);
    length = header + shape.size;
    put_path_key(ip + (shape.family == 4 ? 12 : 8), shape.family, at, host);
    if (shape.family == 4 && slot->socket)
        ip[6] = !slot->socket->dont_fragment != !(how & 2) ? 0 : 0x40;
    fill_numbered(frame + header, world->number, shape.size, segment);
    world->number += segment ? shape.size / segment + 1 : 1;
    if (how & 4)
        patch(input, frame, header);
    put_checksums(frame, length, &shape);
    put_metadata(input, how, which, header, segment, &shape);
    if (how & 16)
        length -= take8(input) % length;
    send(world->guest, scratch, TS_FAST_VNET + length, MSG_NOSIGNAL);
}

/* Bytes without a meaning. */
static void guest_babbles(struct world *world, struct input *input)
{
    uint32_t length = 1 + take8(input) % 80, i;

    memset(scratch, 0, TS_FAST_FRAME);
    for (i = 0; i < length; i++)
        scratch[i] = (uint8_t)take8(input);
    send(world->guest, scratch, take8(input) == 1 ? TS_FAST_FRAME : length, MSG_NOSIGNAL);
}

static void host_sends(struct world *world, struct input *input)
{
    struct slot *slot = pick_slot(world, input);
    uint32_t host = take8(input) % HOSTS, segment = PICK(input, segments), size = PICK(input, sizes);
    uint32_t count = 1 + take8(input) % 20;
    int which = slot->family == 6, tos = (int)take8(input), enabled = (int)segment;
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    if (!slot->socket || hosts[which][host] < 0)
        return;
    v4.sin_port = v6.sin6_port = htons(slot->port);
    setsockopt(hosts[which][host], which ? IPPROTO_IPV6 : IPPROTO_IP, which ? IPV6_TCLASS : IP_TOS, &tos, sizeof tos);
    setsockopt(hosts[which][host], SOL_UDP, UDP_SEGMENT, &enabled, sizeof enabled);
    while (count--) {
        fill_numbered(scratch, world->number, size, segment);
        world->number += segment ? size / segment + 1 : 1;
        sendto(hosts[which][host], scratch, size, MSG_DONTWAIT,
               which ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4, which ? sizeof v6 : sizeof v4);
    }
}

/* As Python does when a socket has something to tell. */
static void clear_errors(struct slot *slot)
{
    struct msghdr message;
    int error;
    socklen_t size = sizeof error;

    do
        memset(&message, 0, sizeof message);
    while (recvmsg(slot->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0);
    getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    slot->socket->has_failed = 0;
}

static void after_call(struct world *world)
{
    uint32_t i, k;

    faults.read = 0;
    world->fast->device_errno = 0;
    check_call(world);
    for (i = 0; i < SLOTS; i++) {
        struct slot *slot = &world->slots[i];

        for (k = 0; slot->socket && k < world->fast->ready_count; k++)
            if (world->fast->ready[k].fd == slot->fd)
                slot->socket->has_failed = 1;
        if (slot->socket && slot->socket->has_failed)
            clear_errors(slot);
    }
}

static void call(struct world *world, struct input *input)
{
    struct ts_fast *fast = world->fast;
    uint32_t how = take8(input);

    fast->fixed_now = world->now;
    if (how & 1) {
        ts_fast_input(fast, 0);
        ts_fast_flush(fast);
    } else {
        ts_fast_run(fast, 0, TS_NEVER, how >> 4);
    }
    after_call(world);
}

/* What happens to a fragment, and how often it is sent then. */
static int spoil_fragment(struct world *world, struct input *input, uint8_t *piece, uint8_t *ip, uint32_t headers)
{
    switch (take8(input) % 24) {
    case 1:
        return 0;
    case 2:
        return 2;
    case 3:
        patch(input, piece, headers);
        break;
    case 4:
        ip[1] ^= 0x40; /* another traffic class */
        break;
    case 5:
        piece[take8(input) & 1] = (uint8_t)take8(input); /* of the virtio-net header */
        break;
    case 6:
        call(world, input);
        break;
    case 7:
        call(world, input);
        world->now += 0.002;
        call(world, input);
        break;
    case 8:
        ip[*ip >> 4 == 4 ? 7 : 43] ^= 8; /* another offset */
        break;
    case 9:
        withdraw(world, pick_slot(world, input), take8(input) % HOSTS);
        break;
    case 10:
        ts_udp_leave_fragments(world->fast);
        check_frames(world);
        break;
    default:
        break;
    }
    return 1;
}

/* Send the datagram in the `length` bytes behind the IP header at `ip` in fragments of `room` bytes. */
static void send_fragments(struct world *world, struct input *input, const uint8_t *frame, const uint8_t *ip,
                           uint32_t length, uint32_t room)
{
    static uint8_t piece[TS_FAST_FRAME + 65536];
    uint32_t is_v6 = *ip >> 4 == 6, header = is_v6 ? 40 : 20, link = (uint32_t)(ip - frame), ident = world->number, at;
    uint32_t base = TS_FAST_VNET + link + header + (is_v6 ? 8 : 0);
    uint8_t *copy = piece + TS_FAST_VNET + link;

    for (at = 0; at < length; at += room) {
        uint32_t part = length - at < room ? length - at : room, more = at + part < length;
        int times;

        memset(piece, 0, TS_FAST_VNET);
        memcpy(piece + TS_FAST_VNET, frame, link + header);
        if (is_v6) {
            ts_put16(copy + 4, 8 + part);
            copy[40] = copy[6];
            copy[41] = 0;
            copy[6] = 44;
            ts_put16(copy + 42, at | more);
            ts_put32(copy + 44, ident);
        } else {
            ts_put16(copy + 2, 20 + part);
            ts_put16(copy + 4, ident);
            ts_put16(copy + 6, (copy[6] & 0x40u) << 8 | more << 13 | at >> 3);
        }
        memcpy(piece + base, ip + header + at, part);
        times = spoil_fragment(world, input, piece + TS_FAST_VNET, copy, base - TS_FAST_VNET);
        if (!is_v6) {
            ts_put16(copy + 10, 0);
            ts_put16(copy + 10, ~plain_sum(copy, 20, 0) & 0xffff);
        }
        if (length <= room && times > 1)
            times = 1; /* it is whole, and comes but once */
        while (times--)
            send(world->guest, piece, base + part, MSG_NOSIGNAL);
    }
}

static void guest_sends_fragments(struct world *world, struct input *input)
{
    static const uint32_t rooms[] = {1480, 1448, 8, 576, 4096, 20000};
    uint32_t at = take8(input) % SLOTS, host = take8(input) % HOSTS, how = take8(input), room = PICK(input, rooms);
    struct slot *slot = &world->slots[at];
    struct shape shape = {.l2 = world->fast->l2, .udp = 1, .ttl = 64, .id = at};
    uint8_t *frame = scratch, *ip = frame + (world->fast->l2 ? TS_ETHERNET : 0);
    size_t header, length;

    shape.family = slot->family == 6 ? 6 : 4;
    shape.size = PICK(input, sizes);
    if (how & 1)
        shape.ttl = (uint8_t)take8(input);
    header = put_headers(frame, &shape);
    length = header + shape.size;
    while (shape.size / room > 80)
        room *= 2;
    put_path_key(ip + (shape.family == 4 ? 12 : 8), shape.family, at, host);
    if (shape.family == 4 && slot->socket)
        ip[6] = !slot->socket->dont_fragment != !(how & 2) ? 0 : 0x40;
    fill_numbered(frame + header, world->number, shape.size, 0);
    put_checksums(frame, length, &shape);
    if (how & 4)
        ts_put16(frame + header - 2, how & 8 ? ts_get16(frame + header - 2) ^ 1 : 0); /* a wrong checksum, or none */
    send_fragments(world, input, frame, ip, (uint32_t)(length - header + 8), room);
    world->number++;
}

static void set_fault(struct input *input)
{
    int error = PICK(input, errors);

    switch (take8(input) % 7) {
    case 0:
        faults.allocation = 1 + take8(input) % 4;
        break;
    case 1:
        faults.write = error;
        break;
    case 2:
        faults.read = error;
        break;
    case 3:
        faults.send = error;
        break;
    case 4:
        faults.cut = 1 + take8(input) % 8;
        break;
    case 5:
        faults.poll = 1;
        break;
    default:
        faults.receive = error;
    }
}

static void operate(struct world *world, struct input *input)
{
    uint32_t what = take8(input);
    struct slot *slot;

    if (what >= 240) {
        guest_sends_fragments(world, input);
        return;
    }
    switch (what % 20) {
    case 0:
        slot = pick_slot(world, input);
        open_slot(world, slot, take8(input));
        break;
    case 1:
    case 2:
        offer(world, input);
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        guest_sends(world, input);
        break;
    case 7:
        guest_babbles(world, input);
        break;
    case 8:
    case 9:
        host_sends(world, input);
        break;
    case 10:
    case 11:
    case 12:
        call(world, input);
        break;
    case 13:
        slot = pick_slot(world, input);
        withdraw(world, slot, take8(input) % HOSTS);
        break;
    case 14:
        close_slot(world, pick_slot(world, input));
        break;
    case 15:
        ts_udp_seen(world->fast);
        CHECK(!world->fast->udp->recent_newest);
        break;
    case 16:
        slot = pick_slot(world, input);
        if (slot->socket)
            ts_udp_seen_paths(slot->socket);
        break;
    case 17:
        set_fault(input);
        break;
    case 18:
        world->now += PICK(input, waits);
        world->fast->udp->mtu = PICK(input, mtus);
        break;
    default:
        if (take8(input) & 1)
            world->fast->udp->uso ^= 1;
        else
            world->fast->hold ^= 1;
    }
}

static void open_world(struct world *world, struct input *input)
{
    uint32_t how = take8(input), i;
    struct ts_fast *fast;

    open_hosts();
    memset(world, 0, sizeof *world);
    memset(&faults, 0, sizeof faults);
    fast = ts_fast_new(take32(input));
    CHECK(fast);
    world->fast = fast;
    world->guest = open_device(fast, how & 1, 1 << 22);
    world->now = 1000;
    world->number = 0xfffffff0u + take8(input);
    world->before = world->number - 1;
    fast->udp->mtu = PICK(input, mtus);
    fast->udp->uso = how >> 1 & 1;
    fast->udp->most_pieces = how & 128 ? 4 : 128;
    for (i = 0; i < (how >> 2 & 3); i++)
        open_slot(world, &world->slots[i], how >> 4);
}

static void close_world(struct world *world)
{
    struct ts_fast *fast = world->fast;
    uint32_t i;

    for (i = 0; i < SLOTS; i++)
        close_slot(world, &world->slots[i]);
    CHECK(!fast->udp->socket_count && !fast->udp->path_count && !fast->udp->recent_oldest);
    close_device(fast, world->guest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct world world;

    open_world(&world, &input);
    while (input.left) {
        operate(&world, &input);
        check_world(&world);
    }
    close_world(&world);
    return 0;
}
