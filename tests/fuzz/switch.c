/*
 * A switch under a program: guests behind ports of both kinds send plain and strange frames, somebody in Python's
 * place says what is believed, and ports come, go and fail. What every guest receives, and what is left for Python,
 * is compared with a plain reading of the rules, which knows neither hashes nor buffers.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "device.h"
#include "faults.h"
#include "fast_switch.h"

#include <errno.h>

#define PORTS 5 /* the first is none */
#define SAYINGS 256
#define WAITING 512
#define MOST_OPERATIONS 300
#define PREFIX 4

static const uint32_t limits[] = {1 << 20, 4096, 20000};
static const double moments[] = {0.1, 1, 4.5, 5, 60};
static const int errors[] = {EAGAIN, EINTR, EIO, EPIPE, ENOBUFS, ECONNRESET};

struct saying { /* "mac sends from address at port" (family), or "mac is behind port" (0) */
    uint32_t port, mac, family, address;
    double until;
};

struct sent {
    uint8_t data[2048];
    uint32_t length;
};

struct end {
    int guest, ours;
    uint8_t is_messages, is_isolated, has_header, is_hurt; /* hurt: something failed there, and what is lost is not counted */
    /* what the guest should get: [start, start + count) of a ring */
    struct sent waiting[WAITING];
    uint32_t start, count;
};

static struct {
    struct ts_fast *fast;
    struct end ends[PORTS];
    struct saying sayings[SAYINGS];
    uint32_t said, skipped, too_long, too_short, number, wild; /* of which nobody says what becomes */
    uint8_t was_hurt; /* a port that is closed by now */
} world;

static uint8_t bytes[PREFIX + 70000];
static const uint8_t no_header[TS_FAST_VNET]; /* one that says nothing */

static void put_mac(uint8_t *at, uint32_t mac)
{
    static const uint8_t everybody[6] = {255, 255, 255, 255, 255, 255};

    if (mac == 0)
        memcpy(at, gateway_mac, 6);
    else if (mac == 7)
        memcpy(at, everybody, 6);
    else
        memcpy(at, (uint8_t[6]){2, 0, 0, 0, 9, (uint8_t)mac}, 6);
}

static void put_address(uint8_t *at, uint32_t family, uint32_t address)
{
    memset(at, 0, 16);
    at[0] = family == 4 ? 10 : 0xfd;
    at[family == 4 ? 3 : 15] = (uint8_t)address;
}

/* A frame, and what of it the switch should see: a family of 0 is nothing that it believes. */
struct content {
    uint32_t src, dst, family, address;
};

/* Mostly `usual`, so that what is said and what is sent meet. */
static uint32_t take_usual(struct input *input, uint32_t usual, uint32_t most)
{
    uint32_t value = take8(input);

    return value < 200 ? usual : value % (most + 1);
}

static uint32_t make_frame(struct input *input, uint32_t port, uint8_t *frame, struct content *is)
{
    uint32_t kind = take8(input), protocol = kind & 1 ? 6 : 17, header, length, ports;
    uint8_t *ip = frame + 14;

    memset(frame, 0, 200);
    is->src = take_usual(input, port, 5);
    is->dst = take8(input) % 8;
    is->address = take_usual(input, is->src, 5);
    is->family = kind & 2 ? 6 : 4;
    put_mac(frame, is->dst);
    put_mac(frame + 6, is->src);
    ports = take8(input);
    ports = ports < 150 ? 0 : ports < 200 ? ports & 3 : ports;
    if (is->family == 4) {
        header = 20 + (kind & 4);
        ip[0] = (uint8_t)(0x40 | header / 4);
        ip[9] = (uint8_t)(kind & 8 ? 1 : protocol);
        ip[7] = (uint8_t)(kind & 16);
        put_address(ip + 12, 4, is->address);
        put_address(ip + 16, 4, 99);
    } else {
        header = 40;
        ip[0] = 0x60;
        ip[6] = (uint8_t)(kind & 8 ? 58 : protocol);
        put_address(ip + 8, 6, is->address);
    }
    ip[header + 1] = (uint8_t)(ports & 1 ? 67 : 5);
    ip[header + 3] = (uint8_t)(ports & 2 ? 67 : 5);
    length = 14 + header + 20 + (kind & 32 ? 1400u : 0);
    frame[12] = is->family == 4 ? 8 : 0x86;
    frame[13] = is->family == 4 ? 0 : 0xdd;
    if (kind & 8)
        is->family = 0;
    else if (is->family == 4 && protocol == 17 && !(kind & 16) && ports & 3)
        is->family = 0;
    if (ports & 0x80) { /* something else, or a part of it */
        frame[13]++;
        is->family = 0;
    } else if (ports & 0x40) {
        length = 1 + ports % 29; /* too short for any IP header, with the number behind it */
        is->family = 0;
    }
    memcpy(frame + length, &world.number, 4);
    world.number++;
    return length + 4 < 18 ? length : length + 4;
}

static const struct saying *find_saying(uint32_t port, uint32_t mac, uint32_t family, uint32_t address)
{
    uint32_t i;

    for (i = world.said; i--;) { /* what was said last counts */
        const struct saying *one = world.sayings + i;

        if (one->mac == mac && one->family == family && (!family || (one->port == port && one->address == address)))
            return one->until > faults.now ? one : NULL;
    }
    return NULL;
}

/* Where a frame from `port` should go: another port, 0 for the gateway, -1 for Python. */
static int judge(uint32_t port, const struct content *is)
{
    const struct saying *where;

    if (!is->family || !find_saying(port, is->src, is->family, is->address))
        return -1;
    if (!is->dst)
        return 0;
    where = find_saying(0, is->dst, 0, 0);
    if (!where || where->port == port || (world.ends[port].is_isolated && world.ends[where->port].is_isolated))
        return -1;
    return (int)where->port;
}

static void expect(uint32_t port, const uint8_t *frame, uint32_t length)
{
    struct end *end = world.ends + port;
    struct sent *sent;

    CHECK(end->count < WAITING);
    sent = end->waiting + (end->start + end->count++) % WAITING;
    memcpy(sent->data, frame, length);
    sent->length = length;
}

/* What has come to a guest is what should have, in order; what is missing was not taken for want of room. */
static void take_frame(struct end *end, const uint8_t *frame, uint32_t length)
{
    while (end->count) {
        const struct sent *sent = end->waiting + end->start;

        end->start = (end->start + 1) % WAITING;
        end->count--;
        if (sent->length == length && !memcmp(sent->data, frame, length))
            return;
        world.skipped++;
    }
    CHECK(world.wild && "a frame that nobody sent");
}

static void guest_receives(struct end *end)
{
    static uint8_t held[1 << 21];
    ssize_t got = 0, size = 0;
    uint32_t header = end->has_header ? TS_FAST_VNET : 0;

    if (end->guest < 0)
        return;
    if (end->is_messages) {
        while ((got = recv(end->guest, held, sizeof held, MSG_DONTWAIT)) > 0)
            take_frame(end, held, (uint32_t)got);
        return;
    }
    while ((got = recv(end->guest, held + size, sizeof held - (size_t)size, MSG_DONTWAIT)) > 0)
        size += got;
    for (got = 0; size - got >= PREFIX;) {
        uint32_t length = ts_get32(held + got);

        if (size - got < PREFIX + (ssize_t)length)
            break;
        CHECK(length > header && (world.wild || !memcmp(held + got + PREFIX, no_header, header)));
        take_frame(end, held + got + PREFIX + header, length - header);
        got += PREFIX + (ssize_t)length;
    }
    CHECK(got == size || end->is_hurt);
}

static void close_end(uint32_t port)
{
    struct end *end = world.ends + port;

    if (end->ours < 0)
        return;
    ts_switch_disconnect(world.fast, port);
    world.said = 0;
    world.skipped += end->count;
    world.was_hurt |= end->is_hurt;
    close(end->ours);
    if (end->guest >= 0)
        close(end->guest);
    memset(end, 0, sizeof *end);
    end->guest = end->ours = -1;
}

/* Rounds until nothing is left; frames for us are those of `port` in `frames`, in order. */
static void run(uint32_t port, const struct sent *frames, const int *wheres, uint32_t count)
{
    uint32_t next = 0, i, rounds = 200;
    int status;

    do {
        status = ts_fast_run(world.fast, 0, faults.now + 1, 2);
        CHECK(status >= 0);
        for (i = 0; i < world.fast->frame_count; i++) {
            const struct ts_frame *frame = world.fast->frames + i;

            while (next < count && wheres[next] > 0)
                next++;
            if (next == count && (world.wild || frame->length < TS_FAST_VNET + 14))
                continue;
            CHECK(next < count && frame->length == TS_FAST_VNET + frames[next].length);
            CHECK(!memcmp(frame->data + TS_FAST_VNET, frames[next].data, frames[next].length));
            CHECK(frame->port == (wheres[next] < 0 ? port : 0));
            next++;
        }
        CHECK(!world.fast->ready_count && !world.fast->refused_count && !world.fast->device_errno);
        ts_fast_flush(world.fast);
        for (i = 1; i < PORTS; i++)
            if (world.ends[i].ours >= 0) {
                if (!world.ends[i].is_hurt)
                    guest_receives(world.ends + i);
                if (world.fast->sw->ports[i].error) {
                    world.ends[i].is_hurt = 1;
                    if (i != port)
                        close_end(i);
                }
            }
    } while (status && rounds-- && !world.ends[port].is_hurt);
    while (next < count && wheres[next] > 0)
        next++;
    CHECK(next == count || world.ends[port].is_hurt || world.fast->sw->ended);
    if (world.ends[port].is_hurt)
        close_end(port);
}

/* Append a length and a frame of some bytes to `at`. */
static uint32_t put_message(uint8_t *at, uint32_t length)
{
    ts_put32(at, length);
    memset(at + PREFIX, 0x11, length); /* of a type that the switch leaves to Python */
    return PREFIX + length;
}

/* A port that Python had before: with frames that it has read, and one that it could not send. */
static void fill_port(struct input *input, uint32_t port)
{
    static const int wheres[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    static struct sent frames[8];
    static uint8_t incoming[8 * (PREFIX + 64)], outgoing[PREFIX + 64];
    struct ts_stream *stream = world.fast->sw->ports[port].stream;
    uint32_t count = take8(input) % 8, in_length = 0, i, out_length, cut = take8(input);

    for (i = 0; i < count; i++) {
        frames[i].length = 14 + (i + cut) % 50;
        in_length += put_message(incoming + in_length, frames[i].length);
        memcpy(frames[i].data, incoming + in_length - frames[i].length, frames[i].length);
    }
    out_length = put_message(outgoing, 60);
    if (world.ends[port].is_messages && in_length && cut > 200) {
        if (cut > 230)
            in_length--; /* not a whole one */
        else
            ts_put32(incoming, TS_STREAM_SLOT + 1);
        CHECK(ts_stream_fill(stream, incoming, in_length, 0, outgoing, out_length) == EINVAL);
        stream->slots = 0;
        return;
    }
    CHECK(!ts_stream_fill(stream, incoming, in_length, 0, outgoing, out_length));
    expect(port, outgoing + PREFIX, out_length - PREFIX);
    run(port, frames, wheres, count);
}

static void open_end(struct input *input, uint32_t port)
{
    struct end *end = world.ends + port;
    uint32_t how = take8(input), limit = PICK(input, limits);
    int ends[2], room = 1 << 20;

    close_end(port);
    end->is_messages = how & 1;
    end->is_isolated = how >> 1 & 1;
    end->has_header = !end->is_messages && how & 32;
    CHECK(!socketpair(AF_UNIX, (how & 1 ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_NONBLOCK, 0, ends));
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    end->ours = ends[0];
    end->guest = ends[1];
    faults.allocation = how >> 2 & 3;
    if (!ts_switch_connect(world.fast, port, ends[0], how & 1 ? 0 : PREFIX, 0, 1514, limit)) {
        CHECK(how & 12);
        close(ends[0]);
        close(ends[1]);
        end->guest = end->ours = -1;
        faults.allocation = 0;
        return;
    }
    faults.allocation = 0;
    CHECK(!ts_switch_connect(world.fast, port, ends[0], PREFIX, 0, 1514, limit));
    world.fast->sw->ports[port].is_isolated = end->is_isolated;
    world.fast->sw->ports[port].stream->has_header = end->has_header;
    world.fast->sw->ports[port].stream->trains = how >> 6 & 1 ? 15 : 0;
    {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = ends[0]};

        CHECK(!epoll_ctl(world.fast->sw->epoll_fd, EPOLL_CTL_ADD, ends[0], &event));
    }
    if (how & 16 && !end->has_header)
        fill_port(input, port);
}

static void send_frame(const struct end *end, const uint8_t *vnet, const uint8_t *frame, uint32_t length)
{
    uint32_t header = end->has_header ? TS_FAST_VNET : 0;

    ts_put32(bytes, header + length);
    memcpy(bytes + PREFIX, vnet, header);
    memcpy(bytes + PREFIX + header, frame, length);
    if (end->is_messages)
        CHECK(send(end->guest, bytes + PREFIX, length, MSG_DONTWAIT) == (ssize_t)length);
    else
        CHECK(send(end->guest, bytes, PREFIX + header + length, MSG_DONTWAIT) ==
              (ssize_t)(PREFIX + header + length));
}

static void guest_sends(struct input *input, uint32_t port)
{
    static struct sent frames[16];
    struct end *end = world.ends + port;
    uint32_t count = 1 + take8(input) % 16, i, sent = 0;
    int wheres[16];
    struct content is;

    if (end->guest < 0)
        return;
    for (i = 0; i < count; i++) {
        struct sent *frame = frames + sent;

        frame->length = make_frame(input, port, frame->data, &is);
        send_frame(end, no_header, frame->data, frame->length);
        wheres[sent] = judge(port, &is);
        if (wheres[sent] > 0)
            expect((uint32_t)wheres[sent], frame->data, frame->length);
        sent++;
    }
    run(port, frames, wheres, sent);
}

static void guest_sends_nonsense(struct input *input, uint32_t port)
{
    static const uint32_t lengths[] = {0, 0, 65560, 66000, 1};
    struct end *end = world.ends + port;
    uint32_t length = PICK(input, lengths);

    if (end->guest < 0)
        return;
    if (length == 1) { /* a header that says what cannot be, or a train of anything */
        static uint8_t frame[20000];
        uint8_t vnet[TS_FAST_VNET] = {0};

        if (!end->has_header)
            return;
        vnet[0] = take8(input);
        vnet[1] = take8(input);
        vnet[4] = take8(input);
        vnet[6] = take8(input) % 40;
        vnet[8] = take8(input) % 40;
        world.wild++;
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = take8(input) & 1 ? 6 : 17;
        put_mac(frame, take8(input) % 8);
        put_mac(frame + 6, port);
        put_address(frame + 26, 4, port);
        send_frame(end, vnet, frame, 60 + 100 * (uint32_t)take8(input) % 19000);
        run(port, NULL, NULL, 0);
        return;
    }
    memset(bytes, 0, sizeof bytes);
    ts_put32(bytes, length);
    if (end->is_messages)
        CHECK(send(end->guest, bytes + PREFIX, length, MSG_DONTWAIT) == (ssize_t)length);
    else
        CHECK(send(end->guest, bytes, PREFIX + length, MSG_DONTWAIT) == (ssize_t)(PREFIX + length));
    *(length ? &world.too_long : &world.too_short) += 1;
    run(port, NULL, NULL, 0);
}

/* A packet of the gateway's. */
static void write_packet(struct input *input)
{
    uint8_t packet[TS_FAST_VNET + 60];
    uint32_t mac = 1 + take8(input) % 7;
    struct iovec view = {packet, sizeof packet};
    const struct saying *where = find_saying(0, mac, 0, 0);

    memset(packet, 0, sizeof packet);
    put_mac(packet + TS_FAST_VNET, mac);
    put_mac(packet + TS_FAST_VNET + 6, 0);
    memcpy(packet + 40, &world.number, 4);
    world.number++;
    ts_fast_run(world.fast, 0, faults.now, 0);
    ts_fast_transmit(world.fast, &view, 1);
    CHECK(world.fast->refused_count == !where);
    if (where)
        expect(where->port, packet + TS_FAST_VNET, 60);
    run(0, NULL, NULL, 0);
}

static void say(struct input *input, uint32_t port, uint32_t family)
{
    struct saying *one;
    uint32_t mac = take_usual(input, port, 5);
    uint8_t mac_bytes[6], address[16];

    if (world.said == SAYINGS || world.ends[port].ours < 0)
        return;
    one = world.sayings + world.said++;
    one->port = port;
    one->mac = mac;
    one->family = family;
    one->address = family ? take_usual(input, mac, 5) : 0;
    one->until = faults.now + PICK(input, moments) + 0.0003; /* never just now: clocks are rounded */
    put_mac(mac_bytes, mac);
    put_address(address, one->family, one->address);
    if (one->family)
        ts_switch_allow(world.fast, port, mac_bytes, (int)one->family, address, one->until);
    else
        ts_switch_locate(world.fast, port, mac_bytes, one->until);
}

static void operate(struct input *input)
{
    uint32_t port = 1 + take8(input) % (PORTS - 1), value;

    switch (take8(input) % 16) {
    case 0: case 1: case 2: case 3: case 4: guest_sends(input, port); break;
    case 5: case 6: say(input, port, 4); break;
    case 7: say(input, port, 6); break;
    case 8: case 9: say(input, port, 0); break;
    case 10: write_packet(input); break;
    case 11: guest_sends_nonsense(input, port); break;
    case 12: faults.now += PICK(input, moments); break;
    case 13:
        value = take8(input);
        if (value < 30) {
            ts_switch_forget(world.fast);
            world.said = 0;
        } else if (value < 100) {
            open_end(input, port);
        } else if (value < 120 && world.ends[port].guest >= 0) {
            close(world.ends[port].guest);
            world.ends[port].guest = -1;
            world.ends[port].is_hurt = 1;
            run(port, NULL, NULL, 0);
        }
        break;
    default: /* the next call fails, and with it what is on its way there */
        value = take8(input);
        *(value & 2 ? &faults.send : &faults.receive) = value & 4 ? PICK(input, errors) : 0;
        faults.cut = value >> 4;
        run(0, NULL, NULL, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint32_t operations = MOST_OPERATIONS, port;
    int nested = epoll_create1(0);

    memset(&faults, 0, sizeof faults);
    memset(&world, 0, sizeof world);
    faults.now = 1000;
    for (port = 0; port < PORTS; port++)
        world.ends[port].guest = world.ends[port].ours = -1;
    world.fast = ts_fast_new(7);
    CHECK(world.fast && nested >= 0);
    world.fast->epoll_fd = epoll_create1(0);
    world.fast->device_fd = nested;
    world.fast->l2 = 1;
    memcpy(world.fast->mac, gateway_mac, 6);
    watch(world.fast, nested, EPOLLIN);
    faults.allocation = take8(&input) % 4;
    if (ts_switch_open(world.fast, nested)) {
        faults.allocation = 0;
        CHECK(!ts_switch_open(world.fast, nested));
        for (port = 1; port < PORTS; port++)
            open_end(&input, port);
        while (input.left && operations--)
            operate(&input);
        memset(&faults.read, 0, sizeof faults - offsetof(struct faults, read) - sizeof faults.now);
        run(0, NULL, NULL, 0);
        for (port = 1; port < PORTS; port++)
            close_end(port);
        if (!world.was_hurt && !world.wild) {
            CHECK(world.fast->sw->too_long <= world.too_long && world.fast->sw->too_short <= world.too_short);
            CHECK(world.skipped >= world.fast->sw->full);
        }
    }
    close(world.fast->epoll_fd);
    close(nested);
    ts_fast_free(world.fast);
    return 0;
}
