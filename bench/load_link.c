/*
 * A guest behind a framed link, without a kernel of its own: Ethernet frames behind their lengths in a UNIX socket,
 * ARP, and one TCP connection with timestamps, SACK and window scale. It computes the checksum of what it
 * sends and checks those of what it receives, acknowledges every second segment, and has no recovery: a link
 * that loses nothing needs none, and a hole is an error.
 *
 * And who is at its other end: a server that takes or sends as much as it can, or another such guest, which takes.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MSS = 1448,        /* bytes of payload at MTU 1500, behind 12 of the timestamps option */
    HEADERS = 14 + 20 + 32,
    SCALE = 10,
    WINDOW = 4 << 20,  /* bytes that the guest takes */
    ROOM = 256 * 1024, /* bytes of one recv, and of what one send is to take */
    PREFIX = 4,
    FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16,
};

static uint8_t guest_mac[6] = {0x5a, 0x94, 0xef, 0, 0, 0x64}, guest_ip[4] = {192, 168, 127, 2};
static uint8_t next_hop[4] = {192, 168, 127, 1}; /* the gateway, unless the other end is on the link */
static const uint64_t LONGEST = 5 * 1000000000ull; /* without any frame */

struct guest {
    int link, is_up, is_open, is_reset, is_listening;
    uint8_t next_mac[6];
    uint8_t key[12]; /* addresses and ports as they stand in its own frames */
    uint32_t snd_una, snd_nxt, snd_wnd, rcv_nxt, stamp;
    uint64_t acked, taken;
    int unacked; /* segments */
    unsigned shift;
    uint8_t in[ROOM + 65536 + PREFIX], out[ROOM + 65536];
    size_t in_length, out_start, out_end;
    uint32_t payload_sum;
};

static struct guest guest;
static uint8_t payload[MSS];

static uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static uint32_t get32(const uint8_t *at)
{
    return get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint32_t folded(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint32_t)sum;
}

/* The sum of RFC 1071, in the machine's byte order (section 2 B). */
static uint64_t sum_of(const uint8_t *at, size_t length)
{
    uint64_t sum = 0;
    uint32_t word;
    uint16_t half = 0;
    for (; length >= 4; at += 4, length -= 4) {
        memcpy(&word, at, 4);
        sum += word;
    }
    if (length >= 2) {
        memcpy(&half, at, 2);
        sum += half;
        at += 2;
        length -= 2;
    }
    half = 0;
    if (length) {
        memcpy(&half, at, 1);
        sum += half;
    }
    return sum;
}

static void flush(void)
{
    while (guest.out_start < guest.out_end) {
        ssize_t sent = send(guest.link, guest.out + guest.out_start, guest.out_end - guest.out_start, MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EAGAIN)
                return;
            fail("send");
        }
        guest.out_start += (size_t)sent;
    }
    guest.out_start = guest.out_end = 0;
}

/* Room for a frame of `length` bytes, counted as sent. */
static uint8_t *frame_of(size_t length)
{
    uint8_t *at = guest.out + guest.out_end;
    if (guest.out_end + PREFIX + length > sizeof guest.out)
        stuck("the gateway does not read");
    put32(at, (uint32_t)length);
    guest.out_end += PREFIX + length;
    return at + PREFIX;
}

/* Ask everybody who has `ip`, or answer `mac`, who has it. */
static void send_arp(const uint8_t *mac, const uint8_t *ip)
{
    uint8_t *at = frame_of(42);
    memset(at, 0, 42);
    memset(at, 0xff, 6);
    memcpy(at + 6, guest_mac, 6);
    memcpy(at + 12, "\x08\x06\0\1\x08\0\6\4\0\1", 10);
    memcpy(at + 22, guest_mac, 6);
    memcpy(at + 28, guest_ip, 4);
    memcpy(at + 38, ip, 4);
    if (mac) {
        at[21] = 2;
        memcpy(at, mac, 6);
        memcpy(at + 32, mac, 6);
    }
}

/* A segment with `size` bytes of payload; a SYN has its options and none. */
static void send_segment(uint8_t flags, uint32_t size)
{
    uint32_t options = flags & SYN ? 20 : 12, length = 20 + options + size;
    uint8_t *at = frame_of(34 + length), *tcp = at + 34;
    uint16_t checksum;
    uint64_t sum;

    memcpy(at, guest.next_mac, 6);
    memcpy(at + 6, guest_mac, 6);
    memcpy(at + 12, "\x08\0\x45\0\0\0\0\0\x40\0\x40\6\0\0", 14);
    put16(at + 16, 20 + length);
    memcpy(at + 26, guest.key, 12);
    checksum = (uint16_t)~folded(sum_of(at + 14, 20));
    memcpy(at + 24, &checksum, 2);
    put32(tcp + 4, guest.snd_nxt);
    put32(tcp + 8, guest.rcv_nxt);
    tcp[12] = (uint8_t)((20 + options) << 2);
    tcp[13] = flags;
    put16(tcp + 14, flags & SYN ? 65535 : WINDOW >> SCALE);
    memset(tcp + 16, 0, 4);
    if (flags & SYN) {
        memcpy(tcp + 20, "\2\4\5\xb4\4\2", 6);
        memcpy(tcp + 26, "\x08\x0a", 2);
        memcpy(tcp + 36, "\1\3\3\x0a", 4);
    } else {
        memcpy(tcp + 20, "\1\1\x08\x0a", 4);
    }
    put32(tcp + (flags & SYN ? 28 : 24), (uint32_t)(now() / MILLISECOND));
    put32(tcp + (flags & SYN ? 32 : 28), guest.stamp);
    memcpy(tcp + 20 + options, payload, size);
    sum = sum_of(guest.key, 8) + htons(IPPROTO_TCP) + htons((uint16_t)length) + sum_of(tcp, 20 + options);
    sum += size == MSS ? guest.payload_sum : sum_of(payload, size); /* always the same: a guest's would be another */
    checksum = (uint16_t)~folded(sum);
    memcpy(tcp + 16, &checksum, 2);
    guest.snd_nxt += size + !!(flags & SYN);
    if (flags & ACK)
        guest.unacked = 0;
}

static void read_options(const uint8_t *at, size_t length, int is_syn)
{
    for (size_t i = 0; i + 1 < length && at[i];) {
        size_t size = at[i] == 1 ? 1 : at[i + 1];
        if (!size || i + size > length)
            stuck("an option does not fit into its segment");
        if (at[i] == 8)
            guest.stamp = get32(at + i + 2);
        if (at[i] == 3 && is_syn)
            guest.shift = at[i + 2];
        i += size;
    }
}

/* A SYN for somebody who listens: the connection is that one. */
static void accept_segment(const uint8_t *ip)
{
    const uint8_t *tcp = ip + 20;
    if (ip[9] != IPPROTO_TCP || memcmp(ip + 16, guest_ip, 4) || tcp[13] != SYN)
        return;
    memcpy(guest.next_mac, ip - 8, 6);
    memcpy(guest.key, ip + 16, 4);
    memcpy(guest.key + 4, ip + 12, 4);
    memcpy(guest.key + 8, tcp + 2, 2);
    memcpy(guest.key + 10, tcp, 2);
    guest.rcv_nxt = get32(tcp + 4) + 1;
    read_options(tcp + 20, (tcp[12] >> 4) * 4u - 20, 1);
    guest.is_listening = 0;
    send_segment(SYN | ACK, 0);
}

static void take_segment(const uint8_t *ip, size_t length)
{
    const uint8_t *tcp = ip + 20;
    uint32_t header, size, flags, ack;

    if (length < 40 || ip[0] != 0x45 || get16(ip + 2) != length)
        stuck("an IP header is wrong");
    if (folded(sum_of(ip, 20)) != 0xffff)
        stuck("the checksum of an IP header is wrong");
    if (guest.is_listening) {
        accept_segment(ip);
        return;
    }
    if (ip[9] != IPPROTO_TCP || memcmp(ip + 12, guest.key + 4, 4) || get16(tcp + 2) != get16(guest.key + 8))
        return;
    if (folded(sum_of(ip + 12, 8) + htons(IPPROTO_TCP) + htons((uint16_t)(length - 20)) + sum_of(tcp, length - 20)) !=
        0xffff)
        stuck("the checksum of a segment is wrong");
    header = (tcp[12] >> 4) * 4u;
    size = (uint32_t)length - 20 - header;
    flags = tcp[13];
    ack = get32(tcp + 8);
    if (header < 20 || header > length - 20)
        stuck("the data offset of a segment is wrong");
    if (flags & RST) {
        guest.is_reset = 1;
        return;
    }
    read_options(tcp + 20, header - 20, flags & SYN);
    if (flags & SYN) {
        guest.rcv_nxt = get32(tcp + 4) + 1;
        guest.snd_una = ack;
        guest.snd_wnd = get16(tcp + 14);
        guest.is_open = 1;
        return;
    }
    if ((int32_t)(ack - guest.snd_una) > 0) {
        guest.acked += ack - guest.snd_una;
        guest.snd_una = ack;
    }
    guest.snd_wnd = get16(tcp + 14) << guest.shift;
    if (!size)
        return;
    if ((int32_t)(get32(tcp + 4) + size - guest.rcv_nxt) <= 0) { /* a tail loss probe (RFC 8985 7.3): we were slow */
        send_segment(ACK, 0);
        return;
    }
    if (get32(tcp + 4) != guest.rcv_nxt)
        stuck("a segment is missing");
    guest.rcv_nxt += size;
    guest.taken += size;
    if (++guest.unacked >= 2)
        send_segment(ACK, 0);
}

static void take_frame(const uint8_t *frame, size_t length)
{
    if (length >= 42 && get16(frame + 12) == 0x0806 && get16(frame + 20) == 2 && !memcmp(frame + 28, next_hop, 4))
        memcpy(guest.next_mac, frame + 22, 6);
    else if (length >= 42 && get16(frame + 12) == 0x0806 && get16(frame + 20) == 1 && !memcmp(frame + 38, guest_ip, 4))
        send_arp(frame + 22, frame + 28);
    else if (length >= 34 && get16(frame + 12) == 0x0800)
        take_segment(frame + 14, length - 14);
}

/* One recv, and what is in it. */
static void receive(void)
{
    ssize_t got = recv(guest.link, guest.in + guest.in_length, sizeof guest.in - guest.in_length, MSG_DONTWAIT);
    size_t at = 0;
    if (!got)
        stuck("the gateway has closed the link");
    if (got < 0) {
        if (errno != EAGAIN)
            fail("recv");
        return;
    }
    guest.in_length += (size_t)got;
    while (guest.in_length - at >= PREFIX) {
        size_t length = get32(guest.in + at);
        if (length > 1514)
            stuck("a frame is larger than the MTU allows");
        if (guest.in_length - at < PREFIX + length)
            break;
        take_frame(guest.in + at + PREFIX, length);
        at += PREFIX + length;
        if (guest.out_end > ROOM)
            flush();
    }
    guest.in_length -= at;
    memmove(guest.in, guest.in + at, guest.in_length);
}

/* Send what there is, wait for frames for `milliseconds` at the most, take them. */
static int turn(int milliseconds)
{
    struct pollfd link = {.fd = guest.link, .events = POLLIN};
    flush();
    if (guest.out_start < guest.out_end)
        link.events |= POLLOUT;
    if (poll(&link, 1, milliseconds) < 0)
        fail("poll");
    if (link.revents & ~POLLOUT)
        receive();
    return link.revents;
}

static void fill(void)
{
    while (guest.out_end - guest.out_start < ROOM && guest.out_end < ROOM &&
           guest.snd_nxt - guest.snd_una + MSS <= guest.snd_wnd)
        send_segment(ACK, MSS);
}

static int has_mac(void)
{
    static const uint8_t none[6];
    return memcmp(guest.next_mac, none, 6) != 0;
}

static void open_link(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof name.sun_path)
        stuck("the path of the socket is too long");
    strcpy(name.sun_path, path);
    guest.link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (guest.link < 0 || connect(guest.link, (struct sockaddr *)&name, sizeof name) < 0)
        fail("connect");
}

void link_guest(const char *path, int is_up, const struct address *server, double seconds)
{
    const struct sockaddr_in *to = (const struct sockaddr_in *)&server->at;
    uint64_t start, end, seen, patience = now() + LONGEST;
    uint64_t *progress = is_up ? &guest.acked : &guest.taken, last = 0;

    if (to->sin_family != AF_INET)
        stuck("the generator of frames speaks IPv4");
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 7 + 1);
    guest.payload_sum = folded(sum_of(payload, MSS));
    guest.snd_nxt = (uint32_t)now();
    memcpy(guest.key, guest_ip, 4);
    memcpy(guest.key + 4, &to->sin_addr, 4);
    put16(guest.key + 8, 32768 + (uint32_t)(now() / MILLISECOND) % 20000);
    memcpy(guest.key + 10, &to->sin_port, 2);
    if (!memcmp(&to->sin_addr, guest_ip, 3))
        memcpy(next_hop, &to->sin_addr, 4);
    open_link(path);
    send_arp(NULL, next_hop);
    while (!has_mac() && now() < patience)
        turn(100);
    send_segment(SYN, 0);
    while (!guest.is_open && now() < patience)
        turn(100);
    if (!guest.is_open)
        stuck("there was no answer to the SYN");
    payload[0] = is_up ? 'u' : 'd';
    send_segment(ACK | PSH, 1);
    payload[0] = 1;
    start = seen = now();
    end = start + (uint64_t)(seconds * 1e9);
    while (now() < end) {
        if (is_up)
            fill();
        turn(100);
        if (guest.is_reset)
            stuck("the connection was reset");
        if (*progress != last) {
            last = *progress;
            seen = now();
        } else if (now() > seen + LONGEST) {
            stuck("the transfer stands still");
        }
    }
    end = now();
    printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f}\n", *progress, (double)(end - start) / 1e9);
    send_segment(RST | ACK, 0);
    for (flush(); guest.out_end && poll(&(struct pollfd){guest.link, POLLOUT, 0}, 1, 1000) > 0; flush())
        ;
    shutdown(guest.link, SHUT_WR);
    while (recv(guest.link, guest.in, sizeof guest.in, 0) > 0) /* a socket that is closed unread loses the reset */
        ;
}

void link_peer(const char *path)
{
    guest_mac[5]++;
    guest_ip[3]++;
    guest.is_listening = 1;
    guest.snd_nxt = (uint32_t)now();
    open_link(path);
    send_arp(NULL, next_hop); /* so that it is known where we are */
    while (!has_mac())
        turn(1000);
    puts("ready");
    fflush(stdout);
    while (!guest.is_reset)
        turn(1000);
}

void link_server(const struct address *a)
{
    int listener = bound(a, SOCK_STREAM);
    if (listen(listener, 16) < 0)
        fail("listen");
    signal(SIGCHLD, SIG_IGN);
    puts("ready");
    fflush(stdout);
    for (;;) { /* a process each: one that is stuck does not hold up the next */
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        ssize_t size;
        char mode;
        if (client < 0)
            fail("accept");
        if (!fork()) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (recv(client, &mode, 1, 0) == 1)
                do
                    size = mode == 'd' ? send(client, buffer, sizeof buffer, MSG_NOSIGNAL)
                                       : recv(client, buffer, sizeof buffer, 0);
                while (size > 0);
            _exit(0);
        }
        close(client);
    }
}
