/* What holds for UDP in the fast path whatever is done to it. */
#include "device.h"
#include "udp.h"

#include <netinet/in.h>

static uint8_t scratch[TS_FAST_FRAME + 65536];

void fill_numbered(uint8_t *at, uint32_t number, uint32_t size, uint32_t segment)
{
    uint32_t done = 0, part;

    do {
        part = segment && size - done > segment ? segment : size - done;
        fill_content(at + done, number & 0xff, part);
        if (part >= NUMBERED)
            ts_put32(at + done, number);
        number++;
        done += part;
    } while (done < size);
}

/* What one datagram, or a train of them, carries; returns the last number, or `last` if none has one. */
static uint32_t check_payload(const uint8_t *data, uint32_t size, uint32_t segment, uint32_t last)
{
    uint32_t done, part, number;

    for (done = 0; done < size; done += part) {
        part = segment && size - done > segment ? segment : size - done;
        if (part < NUMBERED)
            continue;
        number = ts_get32(data + done);
        CHECK(ts_diff(number, last) > 0);
        CHECK(!memcmp(data + done + 4, content(number & 0xff) + 4, part - 4));
        last = number;
    }
    return last;
}

static struct slot *slot_of_port(struct world *world, int family, uint32_t port)
{
    uint32_t i;

    for (i = 0; i < SLOTS; i++)
        if (world->slots[i].socket && world->slots[i].family == family && world->slots[i].port == port)
            return &world->slots[i];
    return NULL;
}

/* What the hosts have received goes past. */
static void check_arrived(struct world *world)
{
    uint32_t last[SLOTS], i;
    int which, host;

    for (i = 0; i < SLOTS; i++)
        last[i] = world->slots[i].last_up;
    for (which = 0; which < 2; which++)
        for (host = 0; host < HOSTS; host++) {
            struct sockaddr_storage name;
            socklen_t name_size = sizeof name;
            ssize_t size;
            uint32_t before[SLOTS];

            memcpy(before, last, sizeof before);
            while (hosts[which][host] >= 0 &&
                   (size = recvfrom(hosts[which][host], scratch, sizeof scratch, MSG_DONTWAIT,
                                    (struct sockaddr *)&name, &name_size)) >= 0) {
                uint32_t port = ntohs(which ? ((struct sockaddr_in6 *)(void *)&name)->sin6_port
                                            : ((struct sockaddr_in *)(void *)&name)->sin_port);
                struct slot *slot = slot_of_port(world, which ? 6 : 4, port);

                name_size = sizeof name;
                CHECK(slot && host != STRANGER);
                i = (uint32_t)(slot - world->slots);
                before[i] = check_payload(scratch, (uint32_t)size, 0, before[i]);
                if (ts_diff(before[i], slot->last_up) > 0)
                    slot->last_up = before[i];
            }
        }
}

/* The datagram that the guest puts together of what comes from the C side. */
static struct {
    uint8_t bytes[8 + 65536];
    uint32_t length, ident;
} whole;

/* 1 if that is complete now. */
static int join(const uint8_t *data, uint32_t size, uint32_t offset, uint32_t ident, uint32_t more)
{
    CHECK(size && !(more && size & 7) && offset + size <= 65535);
    if (!offset) {
        whole.length = 0;
        whole.ident = ident;
    }
    if (offset != whole.length || ident != whole.ident)
        return 0; /* one has been lost by a fault */
    memcpy(whole.bytes + offset, data, size);
    whole.length += size;
    return !more;
}

/* A fragment from the C side to the guest. */
static void check_fragment(struct world *world, const uint8_t *data, size_t length)
{
    const struct ts_fast *fast = world->fast;
    const uint8_t *frame = data + TS_FAST_VNET, *ip = frame + (fast->l2 ? TS_ETHERNET : 0);
    int family = ip[0] >> 4;
    uint32_t header = family == 4 ? 20 : 48, size = (uint32_t)(data + length - ip) - header, port, word, is_whole;
    static const uint8_t no_vnet[TS_FAST_VNET];
    struct slot *slot;

    CHECK(!memcmp(data, no_vnet, TS_FAST_VNET) && header + size <= fast->udp->mtu);
    if (family == 4) {
        CHECK(plain_sum(ip, 20, 0) == 0xffff && ts_get16(ip + 2) == header + size);
        word = ts_get16(ip + 6);
        is_whole = (uint32_t)join(ip + 20, size, (word & 0x1fff) << 3, ts_get16(ip + 4), word >> 13 & 1);
    } else {
        CHECK(ts_get16(ip + 4) == 8 + size && ip[40] == TS_PROTOCOL_UDP && !ip[41]);
        word = ts_get16(ip + 42);
        is_whole = (uint32_t)join(ip + 48, size, word & 0xfff8, ts_get32(ip + 44), word & 1);
    }
    if (!is_whole)
        return;
    CHECK(ts_get16(whole.bytes + 4) == whole.length && ts_get16(whole.bytes + 6));
    CHECK(plain_sum(whole.bytes, whole.length, plain_pseudo(ip, TS_PROTOCOL_UDP, whole.length)) == 0xffff);
    port = ts_get16(whole.bytes + 2) - 40000u;
    CHECK(port < SLOTS);
    slot = &world->slots[port];
    CHECK(slot->socket && slot->family == family && slot->paths[ts_get16(whole.bytes) - HOST_PORT]);
    slot->last_down = check_payload(whole.bytes + 8, whole.length - 8, 0, slot->last_down);
}

/* A frame from the C side to the guest. */
static void check_emitted(struct world *world, const uint8_t *data, size_t length)
{
    const struct ts_fast *fast = world->fast;
    const uint8_t *frame = data + TS_FAST_VNET, *ip = frame + (fast->l2 ? TS_ETHERNET : 0), *udp;
    int family = ip[0] >> 4;
    size_t l4 = (fast->l2 ? TS_ETHERNET : 0u) + (family == 4 ? 20u : 40u), end = length - TS_FAST_VNET;
    struct slot *slot;
    uint32_t size, port;
    uint16_t header, start, offset, gso_size;

    CHECK(length > TS_FAST_VNET + l4 && (family == 4 || family == 6));
    if (family == 4 ? ts_get16(ip + 6) & 0x3fff : ip[6] == 44) {
        check_fragment(world, data, length);
        return;
    }
    CHECK(length >= TS_FAST_VNET + l4 + 8);
    memcpy(&header, data + 2, 2);
    memcpy(&gso_size, data + 4, 2);
    memcpy(&start, data + 6, 2);
    memcpy(&offset, data + 8, 2);
    udp = frame + l4;
    size = (uint32_t)(end - l4 - 8);
    CHECK(data[0] == 1 && start == l4 && offset == 6 && header == l4 + 8);
    CHECK(data[1] == (gso_size ? 5 : 0) && (!gso_size || (fast->udp->uso && size > gso_size)));
    CHECK((gso_size ? gso_size : size) + 8 + (family == 4 ? 20 : 40) <= fast->udp->mtu);
    if (fast->l2)
        CHECK(!memcmp(frame, guest_mac, 6) && ts_get16(frame + 12) == (family == 4 ? 0x0800 : 0x86dd));
    if (family == 4)
        CHECK(plain_sum(ip, 20, 0) == 0xffff && ts_get16(ip + 2) == (fast->l2 ? end - TS_ETHERNET : end));
    else
        CHECK(ts_get16(ip + 4) == end - l4);
    CHECK(ts_get16(udp + 4) == size + 8);
    CHECK(ts_get16(udp + 6) == plain_pseudo(ip, TS_PROTOCOL_UDP, size + 8));
    port = ts_get16(udp + 2) - 40000u;
    CHECK(port < SLOTS);
    slot = &world->slots[port];
    port = ts_get16(udp) - HOST_PORT;
    CHECK(slot->socket && slot->family == family && port < HOSTS && slot->paths[port]);
    slot->last_down = check_payload(udp + 8, size, gso_size, slot->last_down);
}

static void check_output(struct world *world)
{
    uint32_t at = 0, count = 0, length;
    const uint8_t *data;
    ssize_t size;

    while ((size = recv(world->guest, scratch, sizeof scratch, MSG_DONTWAIT)) > 0)
        check_emitted(world, scratch, (size_t)size);
    for (; (data = next_refused(world->fast, &at, &length)); count++)
        check_emitted(world, data, length);
    CHECK(count == world->fast->refused_count);
}

/* Datagrams that are left for Python: none of them has been overtaken. */
static void check_left(struct world *world)
{
    const struct ts_udp *udp = world->fast->udp;
    uint32_t i;

    CHECK(udp->datagram_count <= TS_UDP_BURST);
    for (i = 0; i < udp->datagram_count; i++) {
        const struct ts_datagram *datagram = &udp->datagrams[i];
        struct slot *slot;
        uint32_t at;

        for (at = 0; at < SLOTS && world->slots[at].socket != datagram->socket; at++)
            ;
        CHECK(datagram->socket && at < SLOTS && datagram->length <= TS_UDP_DATAGRAM);
        CHECK(!datagram->segment || datagram->segment < datagram->length);
        slot = &world->slots[at];
        CHECK(datagram->address_length == (slot->family == 4 ? 4 : 16) && !datagram->scope);
        slot->last_down = check_payload(datagram->data, datagram->length, datagram->segment, slot->last_down);
    }
}

/* The mapping whose path the numbered datagram in `frame` is of; NULL if there is none. */
static const struct slot *slot_of_frame(const struct world *world, const struct ts_frame *frame,
                                        const uint8_t *udp)
{
    const uint8_t *ip = frame->data + TS_FAST_VNET + (world->fast->l2 ? TS_ETHERNET : 0);
    uint32_t at = ts_get16(udp) - 40000u, host = ts_get16(udp + 2) - HOST_PORT;
    const struct ts_udp_path *path;

    if (*ip >> 4 == 4 && ts_get16(ip + 6) & 0x3fff)
        return NULL; /* a fragment */
    if (at >= SLOTS || host >= HOSTS || frame->length < (size_t)(udp - frame->data) + 8 + NUMBERED)
        return NULL;
    path = world->slots[at].paths[host];
    if (!path || path->family != *ip >> 4 || ip[path->family == 4 ? 9 : 6] != TS_PROTOCOL_UDP ||
        memcmp(udp + 12, content(udp[11]) + 4, NUMBERED - 4))
        return NULL;
    return memcmp(path->address, ip + (path->family == 4 ? 12 : 8), path->family == 4 ? 8 : 32)
               ? NULL
               : &world->slots[at];
}

/* Frames that are left for Python: in the order in which they came, and none of a path has been overtaken. */
void check_frames(const struct world *world)
{
    const struct ts_fast *fast = world->fast;
    uint32_t i;

    CHECK(fast->frame_count <= TS_FAST_LEFT && fast->ready_count <= TS_FAST_EVENTS);
    for (i = 0; i < fast->frame_count; i++) {
        const struct ts_frame *frame = &fast->frames[i];
        size_t base = TS_FAST_VNET + (fast->l2 ? TS_ETHERNET : 0);
        const uint8_t *udp = frame->data + base + (frame->data[base] >> 4 == 4 ? 20 : 40);
        const struct slot *slot;

        CHECK(frame->length <= TS_FAST_FRAME && (!i || frame->order > fast->frames[i - 1].order));
        slot = slot_of_frame(world, frame, udp);
        CHECK(!slot || ts_diff(ts_get32(udp + 8), slot->last_up) > 0);
    }
}

void check_call(struct world *world)
{
    check_arrived(world);
    check_frames(world);
    check_output(world);
    check_left(world);
}

bool is_taken(const struct world *world, const struct ts_udp_path *path)
{
    size_t size = path->family == 4 ? 8 : 32;
    uint32_t i, host;

    for (i = 0; i < SLOTS; i++)
        for (host = 0; host < HOSTS; host++) {
            const struct ts_udp_path *other = world->slots[i].paths[host];

            if (other && other->family == path->family && !memcmp(other->ports, path->ports, 4) &&
                !memcmp(other->address, path->address, size))
                return true;
        }
    return false;
}

/* The paths of a socket, by use: those that were used first. */
static void check_paths(const struct slot *slot)
{
    const struct ts_udp_path *path, *newer = NULL;
    uint32_t count = 0, known = 0, i;
    bool is_unused = false;

    for (path = slot->socket->newest; path; path = path->older) {
        CHECK(path->newer == newer && path->socket == slot->socket);
        CHECK(!is_unused || !path->is_used);
        is_unused = !path->is_used;
        CHECK(path->quote_length <= TS_UDP_QUOTE && (!path->is_used || path->quote_length));
        newer = path;
        count++;
    }
    for (i = 0; i < HOSTS; i++)
        known += slot->paths[i] != NULL;
    CHECK(slot->socket->oldest == newer && count == slot->socket->path_count && count == known);
}

void check_world(const struct world *world)
{
    const struct ts_udp *udp = world->fast->udp;
    const struct ts_udp_socket *socket, *older = NULL;
    uint32_t sockets = 0, paths = 0, recent = 0, i;

    for (i = 0; i < SLOTS; i++)
        if (world->slots[i].socket) {
            check_paths(&world->slots[i]);
            sockets++;
            paths += world->slots[i].socket->path_count;
            recent += world->slots[i].socket->is_recent;
        }
    CHECK(sockets == udp->socket_count && paths == udp->path_count);
    for (socket = udp->recent_oldest; socket; socket = socket->newer) {
        CHECK(socket->is_recent && socket->older == older);
        CHECK(!older || older->last_used <= socket->last_used);
        older = socket;
        recent--;
    }
    CHECK(udp->recent_newest == older && !recent);
}
