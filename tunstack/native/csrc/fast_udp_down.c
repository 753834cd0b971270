/* Datagrams for the guest: from the sockets of mappings to the device. */
#define _GNU_SOURCE
#include "fast_udp_state.h"

#define LEAST_MTU_V4 68   /* RFC 791 3.2 */
#define LEAST_MTU_V6 1280 /* RFC 8200 5 */

/* The first of `count` identifications in a row (RFC 6864 4.2, RFC 7739) for packets of the path's addresses. */
static uint32_t take_idents(struct ts_fast *fast, const struct ts_udp_path *path, uint32_t count)
{
    uint32_t *next = &ts_udp_state_of(fast)->idents[path->ident_slot], first = *next;

    *next += count;
    return first;
}

/*
 * The virtio-net header, all 0, and the headers of the path at `head` for `length` bytes behind the IP header.
 * `word` is that of IPv4 with the fragment's offset.
 */
static void put_head(uint8_t *head, const struct ts_udp_path *path, uint32_t traffic_class, uint32_t length,
                     uint32_t ident, uint32_t word)
{
    uint8_t *ip = head + TS_FAST_VNET + path->link_length;

    memset(head, 0, TS_FAST_VNET);
    memcpy(head + TS_FAST_VNET, path->head, path->head_length);
    if (path->family == 4) {
        ip[1] = (uint8_t)traffic_class;
        ts_put16(ip + 4, ident);
        ts_put16(ip + 6, word);
        ts_fix_ip(ip, 4, 20, 20 + length);
    } else {
        ip[0] = (uint8_t)(0x60 | traffic_class >> 4);
        ip[1] = (uint8_t)(traffic_class << 4);
        ts_fix_ip(ip, 6, 40, 40 + length);
    }
}

/* The header of a datagram to the guest, the checksum of which is that of the pseudo-header alone. */
static void put_udp(uint8_t *udp, const struct ts_udp_path *path, uint32_t size)
{
    memcpy(udp, path->ports + 2, 2);
    memcpy(udp + 2, path->ports, 2);
    ts_put16(udp + 4, TS_UDP_HEADER + size);
    ts_put16(udp + 6, ts_folded(path->pseudo_sum + TS_UDP_HEADER + size));
}

static void transmit(struct ts_fast *fast, uint8_t *head, uint32_t head_length, const uint8_t *payload, uint32_t size)
{
    struct iovec views[2];

    views[0].iov_base = head;
    views[0].iov_len = head_length;
    views[1].iov_base = (void *)(uintptr_t)payload;
    views[1].iov_len = size;
    ts_fast_transmit(fast, views, size ? 2 : 1);
}

/* One packet, or with `segment` a train of them that the device cuts. */
static void emit(struct ts_fast *fast, const struct ts_udp_path *path, uint32_t traffic_class,
                 const uint8_t *payload, uint32_t size, uint32_t segment)
{
    uint8_t head[TS_FAST_VNET + TS_FAST_HEAD + TS_UDP_HEADER];
    uint32_t ident = take_idents(fast, path, segment ? (size + segment - 1) / segment : 1);

    put_head(head, path, traffic_class, TS_UDP_HEADER + size, ident, 0);
    put_udp(head + TS_FAST_VNET + path->head_length, path, size);
    head[0] = TS_NEEDS_CHECKSUM;
    head[1] = segment ? TS_GSO_UDP_L4 : 0;
    ts_put_native16(head + 2, path->head_length + TS_UDP_HEADER);
    ts_put_native16(head + 4, segment);
    ts_put_native16(head + 6, path->head_length);
    ts_put_native16(head + 8, 6);
    transmit(fast, head, TS_FAST_VNET + path->head_length + TS_UDP_HEADER, payload, size);
}

/* Bytes of the largest fragment of a packet of `length` bytes behind its IP header; 0: it cannot be cut. */
static uint32_t fragment_room(const struct ts_fast *fast, const struct ts_udp_path *path, uint32_t length)
{
    uint32_t mtu = fast->udp->mtu;

    if (path->family == 6)
        return mtu < LEAST_MTU_V6 || length > 65535 ? 0 : (mtu - 40 - TS_FRAGMENT_HEADER) & ~7u;
    return mtu < LEAST_MTU_V4 || length > 65535 - 20 ? 0 : (mtu - 20) & ~7u;
}

/* One datagram in fragments of `room` bytes (RFC 791 3.2, RFC 8200 4.5). */
static void emit_fragments(struct ts_fast *fast, const struct ts_udp_path *path, uint32_t traffic_class,
                           const uint8_t *payload, uint32_t size, uint32_t room)
{
    uint8_t udp[TS_UDP_HEADER], head[TS_FAST_VNET + TS_FAST_HEAD + TS_FRAGMENT_HEADER + TS_UDP_HEADER];
    uint32_t ident = take_idents(fast, path, 1), length = TS_UDP_HEADER + size, checksum, at, extra, first;

    fast->udp->cut++;
    put_udp(udp, path, size);
    checksum = ts_checksum(payload, size, ts_ones_sum(udp, TS_UDP_HEADER, 0));
    ts_put16(udp + 6, checksum ? checksum : 0xffff); /* RFC 768: zero means that there is none */
    for (at = 0; at < length; at += room) {
        uint32_t part = length - at < room ? length - at : room, more = at + part < length;
        uint32_t end = TS_FAST_VNET + path->head_length;

        extra = path->family == 6 ? TS_FRAGMENT_HEADER : 0;
        put_head(head, path, traffic_class, extra + part, ident, at >> 3 | more << 13);
        if (extra) {
            head[end] = TS_PROTOCOL_UDP;
            head[end + 1] = 0;
            ts_put16(head + end + 2, at | more);
            ts_put32(head + end + 4, ident);
            head[TS_FAST_VNET + path->link_length + 6] = TS_PROTOCOL_FRAGMENT;
            end += extra;
        }
        first = at ? 0 : TS_UDP_HEADER; /* the header stands in the first one */
        memcpy(head + end, udp, first);
        transmit(fast, head, end + first, payload + at + first - TS_UDP_HEADER, part - first);
    }
}

/* 1 if the datagram, or the train, has gone to the device; 0 if it is Python's. */
static int carry(struct ts_fast *fast, struct ts_udp_path *path, const struct ts_datagram *datagram)
{
    uint32_t header = (path->family == 4 ? 20 : 40) + TS_UDP_HEADER;
    uint32_t size = datagram->segment ? datagram->segment : datagram->length, at = 0, room = 0;
    uint32_t count = datagram->segment ? (datagram->length + size - 1) / size : 1;

    if (size + header > fast->udp->mtu && !(room = fragment_room(fast, path, TS_UDP_HEADER + size)))
        return 0;
    if (fast->refused.length > TS_UDP_REFUSED) {
        fast->udp->queue_full += count;
    } else if (count > 1 && !room && fast->udp->uso && datagram->length + header <= 65535) {
        emit(fast, path, datagram->traffic_class, datagram->data, datagram->length, size);
    } else {
        do {
            uint32_t rest = datagram->length - at, part = rest < size ? rest : size;

            if (part + header > fast->udp->mtu)
                emit_fragments(fast, path, datagram->traffic_class, datagram->data + at, part, room);
            else
                emit(fast, path, datagram->traffic_class, datagram->data + at, part, 0);
            at += size;
        } while (at < datagram->length);
    }
    fast->udp->datagrams_down += count;
    path->has_answered = 1;
    ts_udp_use_socket(fast, path->socket);
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_udp *udp = &state->shared;
    struct mmsghdr messages[TS_UDP_BURST];
    struct iovec views[TS_UDP_BURST];
    union {
        struct sockaddr any;
        struct sockaddr_in6 v6;
    } names[TS_UDP_BURST];
    union {
        struct cmsghdr aligned;
        char bytes[TS_UDP_CONTROL];
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
    struct ts_udp_state *state = ts_udp_state_of(fast);
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
