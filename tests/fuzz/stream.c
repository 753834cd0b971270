/*
 * Frames in a stream under a program: the input is read as operations on the guest's end and on ours, at a real
 * socket pair with little room. What is read is compared with a plain reading of every byte that the guest has
 * sent, and what the guest receives with every packet that was taken, as ts_segment (which has a target of its
 * own) and a plain checksum make it.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "device.h"
#include "faults.h"
#include "fast_stream.h"

#include <errno.h>

#define RAW (1 << 20)
#define EXPECTED (4 << 20)
#define MOST_OPERATIONS 400

static const uint32_t lengths[] = {60, 1, 0, 14, 74, 1514, 9014, 65549, 65550, 65536, 255, 256, 0x1000000, 5};
static const uint32_t sizes[] = {0, 1, 100, 1448, 1460, 1461, 2896, 9000, 40000, 65000, 33};
static const uint32_t gso_sizes[] = {1448, 100, 1, 31, 1460, 1461, 9000, 0, 65535};
static const uint32_t types[] = {1, 4, 5, 0x81, 3, 0x80};
static const uint32_t mosts[] = {1514, 9014, 70000, 100};
static const int errors[] = {EAGAIN, EINTR, EIO, EPIPE, ENOBUFS, ECONNRESET};

struct world {
    struct ts_fast *fast;
    struct ts_stream *stream;
    int guest, is_over;
    /* all bytes that the guest has sent, and what is expected to be read of them next */
    uint8_t raw[RAW];
    uint64_t sent, at;
    uint32_t too_long, too_short;
    /* [start, end): what was taken and the guest has not received */
    uint8_t expected[EXPECTED];
    uint32_t start, end;
};

static struct world world;
static uint8_t packet[TS_FAST_VNET + LARGEST_HEADERS + 65536], frame[TS_FAST_FRAME];

static void put_prefix(uint8_t *at, uint64_t length)
{
    uint32_t i, prefix = world.stream->prefix;

    for (i = 0; i < prefix; i++)
        at[i] = (uint8_t)(length >> 8 * (world.stream->little ? i : prefix - 1 - i));
}

/* The next whole frame of what the guest has sent; NULL if there is none. */
static const uint8_t *expected_frame(uint32_t *length)
{
    uint32_t i, prefix = world.stream->prefix;

    while (world.at + prefix <= world.sent) {
        const uint8_t *at = world.raw + world.at;
        uint64_t value = 0;

        for (i = 0; i < prefix; i++)
            value |= (uint64_t)at[i] << 8 * (world.stream->little ? i : prefix - 1 - i);
        if (value && value <= 65549) {
            *length = (uint32_t)value;
            return world.at + prefix + value <= world.sent ? at + prefix : NULL;
        }
        *(value ? &world.too_long : &world.too_short) += 1;
        world.at += prefix + value;
    }
    return NULL;
}

static void check_read(const uint8_t *data, uint32_t length)
{
    static const uint8_t nothing[TS_FAST_VNET];
    uint32_t wanted = 0;
    const uint8_t *must = expected_frame(&wanted);

    CHECK(must && length == TS_FAST_VNET + wanted);
    CHECK(!memcmp(data, nothing, TS_FAST_VNET) && !memcmp(data + TS_FAST_VNET, must, wanted));
    world.at += world.stream->prefix + wanted;
}

static void guest_sends(struct input *input)
{
    static uint8_t bytes[4 + 65550];
    uint32_t length = PICK(input, lengths), count = 1 + take8(input) % 8, most = take8(input), i, size;
    ssize_t sent;

    if (world.guest < 0)
        return;
    for (i = 0; i < count; i++) {
        put_prefix(bytes, length);
        fill_content(bytes + world.stream->prefix, (uint32_t)world.sent, length > 65550 ? 100 : length);
        size = world.stream->prefix + (length > 65550 ? 100 : length);
        if (most & 0x80 && i == count - 1)
            size = size * (most & 0x7f) / 128;
        if (world.sent + size > RAW)
            return;
        sent = send(world.guest, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return;
        memcpy(world.raw + world.sent, bytes, (size_t)sent);
        world.sent += (uint64_t)sent;
    }
}

static void read_some(uint32_t count)
{
    ssize_t length;

    while (count--) {
        CHECK(!ts_stream_has_frame(world.stream) || expected_frame(&(uint32_t){0}));
        world.stream->is_drained = 0;
        length = ts_stream_read(world.stream, frame);
        if (length >= 0)
            check_read(frame, (uint32_t)length);
        else
            CHECK(errno == EAGAIN || errno == ENOLINK || errno == EIO || errno == EPIPE || errno == ENOBUFS ||
                  errno == ECONNRESET);
    }
}

static void run(uint32_t rounds)
{
    uint32_t i;
    int status = ts_fast_run(world.fast, 0, faults.now + 1, rounds);

    CHECK(status >= 0);
    for (i = 0; i < world.fast->frame_count; i++)
        check_read(world.fast->frames[i].data, world.fast->frames[i].length);
    for (i = 0; i < world.fast->ready_count; i++)
        CHECK(world.fast->ready[i].fd == world.stream->fd && world.fast->ready[i].events == EPOLLOUT);
    world.fast->frame_count = 0;
    ts_fast_flush(world.fast);
    if (world.fast->device_errno && world.fast->device_errno != EAGAIN)
        world.is_over = 1;
}

static void expect(const uint8_t *data, uint32_t length)
{
    CHECK(world.end + length + world.stream->prefix <= EXPECTED);
    put_prefix(world.expected + world.end, length);
    memcpy(world.expected + world.end + world.stream->prefix, data, length);
    world.end += length + world.stream->prefix;
}

/* What the link is to carry of `packet`, or 0 if it cannot. */
static int expect_packet(uint32_t length)
{
    static uint8_t cut[1 << 20];
    uint16_t gso_size, start, offset;
    uint8_t *data = packet + TS_FAST_VNET;
    uint32_t type = packet[1] & 0x7f, i, header, at, most = world.stream->most;
    int64_t answer;

    memcpy(&gso_size, packet + 4, 2);
    memcpy(&start, packet + 6, 2);
    memcpy(&offset, packet + 8, 2);
    if (packet[0] & 1 && (uint32_t)start + offset + 2 > length)
        return 0;
    if (type) {
        if (!gso_size || gso_size > most || length / gso_size > 2048)
            return 0;
        answer = ts_segment(data, length, world.fast->l2, gso_size, type, 0, cut, sizeof cut);
        header = (uint32_t)(answer >> 32);
        if (answer < 0 || header + gso_size > most)
            return 0;
        for (i = at = 0; i < (uint32_t)answer; i++) {
            uint32_t rest = length - header - i * gso_size, size = header + (rest < gso_size ? rest : gso_size);

            expect(cut + at, size);
            at += size;
        }
        return 1;
    }
    if (!length || length > most)
        return 0;
    if (packet[0] & 1) {
        uint32_t sum = 0xffff ^ plain_sum(data + start, length - start, 0);

        ts_put16(data + start + offset, !sum && offset == 6 ? 0xffff : sum);
    }
    expect(data, length);
    return 1;
}

static void write_packet(struct input *input, int is_train)
{
    uint32_t how = take8(input), size = PICK(input, sizes), length, before = world.end, header, first;
    uint16_t gso_size = (uint16_t)PICK(input, gso_sizes), start, offset;
    struct shape shape = {.l2 = world.fast->l2, .family = how & 1 ? 6 : 4, .udp = how >> 1 & 1, .ttl = 64, .flags = 24};
    static uint8_t copy[sizeof packet];
    struct iovec views[3];
    int failed, is_possible;

    shape.size = size;
    header = (uint32_t)put_headers(packet + TS_FAST_VNET, &shape);
    fill_content(packet + TS_FAST_VNET + header, size, size);
    length = header + size;
    memset(packet, 0, TS_FAST_VNET);
    start = (uint16_t)(header - (shape.udp ? 8 : 32));
    offset = shape.udp ? 6 : 16;
    if (how & 4)
        packet[0] = 1;
    if (is_train)
        packet[1] = (uint8_t)PICK(input, types);
    memcpy(packet + 4, &gso_size, 2);
    memcpy(packet + 6, &start, 2);
    memcpy(packet + 8, &offset, 2);
    if (how & 8)
        patch(input, packet, TS_FAST_VNET + header);
    if (how & 16)
        length = take16(input) % (length + 1);
    else if (how & 64 && size > 1) { /* the checksum will be 0 */
        ts_put16(packet + TS_FAST_VNET + header, 0);
        ts_put16(packet + TS_FAST_VNET + header, ~plain_sum(packet + TS_FAST_VNET + start, length - start, 0));
    }
    memcpy(copy, packet, TS_FAST_VNET + length);
    is_possible = expect_packet(length);
    if (how & 32) {
        first = TS_FAST_VNET + (length < header ? length : header);
        views[0] = (struct iovec){copy, first};
        views[1] = (struct iovec){copy + first, (TS_FAST_VNET + length - first) / 2};
        views[2].iov_base = copy + first + views[1].iov_len;
        views[2].iov_len = TS_FAST_VNET + length - first - views[1].iov_len;
        failed = ts_stream_write(world.stream, views, 3);
    } else {
        failed = ts_stream_put(world.stream, copy, TS_FAST_VNET + length);
    }
    if (failed == EINVAL || failed == EAGAIN) {
        CHECK(failed == EAGAIN || !is_possible);
        world.end = before;
    } else if (failed) {
        world.is_over = 1;
    } else {
        CHECK(is_possible);
    }
    CHECK(world.stream->out_end - world.stream->out_start < TS_STREAM_LIMIT + (1 << 20));
}

static void guest_receives(uint32_t most)
{
    static uint8_t bytes[1 << 20];
    ssize_t got = world.guest < 0 ? -1 : recv(world.guest, bytes, most, MSG_DONTWAIT);

    if (got <= 0)
        return;
    CHECK((uint32_t)got <= world.end - world.start);
    CHECK(!memcmp(bytes, world.expected + world.start, (size_t)got));
    world.start += (uint32_t)got;
    if (world.start > EXPECTED / 2) {
        memmove(world.expected, world.expected + world.start, world.end - world.start);
        world.end -= world.start;
        world.start = 0;
    }
}

/* The socket goes to another fast path, by way of Python. */
static void change_hands(void)
{
    static uint8_t in[1 << 20], out[8 << 20];
    const struct ts_fast *fast = world.fast;
    const struct ts_stream *old = world.stream;
    uint32_t arrived = old->in_end - old->in_start, waits = old->out_end - old->out_start, prefix = old->prefix;
    uint32_t most = old->most, too_long = old->too_long, too_short = old->too_short;
    uint64_t skip = old->skip;
    int little = old->little, failed;
    struct ts_fast *fresh = ts_fast_new(1);

    if (!fresh)
        return;
    CHECK(arrived <= sizeof in && waits <= sizeof out);
    memcpy(in, old->in + old->in_start, arrived);
    if (waits)
        memcpy(out, old->out + old->out_start, waits);
    fresh->epoll_fd = fast->epoll_fd;
    fresh->device_fd = fast->device_fd;
    fresh->l2 = fast->l2;
    fresh->burst_minimum = fast->burst_minimum;
    ts_fast_free(world.fast);
    world.fast = fresh;
    world.stream = ts_stream_open(fresh, fresh->device_fd, prefix, little, most);
    failed = world.stream ? ts_stream_fill(world.stream, in, arrived, skip, out, waits) : ENOMEM;
    CHECK(!failed || failed == ENOMEM || waits > 2 * TS_STREAM_LIMIT);
    if (!failed) {
        world.stream->too_long = too_long;
        world.stream->too_short = too_short;
        CHECK(!(arrived || waits) || ts_stream_fill(world.stream, in, arrived, skip, out, waits) == EINVAL);
    }
    world.is_over |= failed != 0;
}

static void operate(struct input *input)
{
    uint32_t value;

    switch (take8(input) % 12) {
    case 0: case 1: guest_sends(input); break;
    case 2: read_some(1 + take8(input) % 8); break;
    case 3: run(1 + take8(input) % 4); break;
    case 4: case 5: write_packet(input, 0); break;
    case 6: case 7: write_packet(input, 1); break;
    case 8: guest_receives(1 + (take16(input) << 4)); break;
    case 9:
        world.is_over |= ts_stream_flush(world.stream) != 0;
        break;
    case 10:
        value = take8(input);
        faults.allocation = value & 1;
        *(value & 2 ? &faults.send : &faults.receive) = value & 4 ? PICK(input, errors) : 0;
        break;
    default:
        value = take8(input);
        if (value < 40)
            change_hands();
        if (world.guest >= 0 && value > 200) {
            close(world.guest);
            world.guest = -1;
        }
    }
}

/* Everything that is on its way arrives. */
static void settle(void)
{
    uint32_t tries = 64, length;

    memset(&faults, 0, sizeof faults);
    read_some(64);
    while (expected_frame(&length) && tries--)
        read_some(100);
    read_some(4); /* what is no frame behind the last one */
    CHECK(!expected_frame(&length));
    CHECK(world.stream->too_long == world.too_long && world.stream->too_short == world.too_short);
    if (world.guest < 0)
        return;
    for (tries = 1000; tries && !ts_stream_flush(world.stream) && world.start != world.end; tries--)
        guest_receives(1 << 20);
    CHECK(world.start == world.end && world.stream->out_start == world.stream->out_end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint32_t how = take8(&input), prefix = 1 + take8(&input) % 7, operations = MOST_OPERATIONS;
    int ends[2], room = 1 << (12 + take8(&input) % 8);

    memset(&faults, 0, sizeof faults);
    faults.now = 1000;
    world.fast = ts_fast_new(1);
    CHECK(world.fast);
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    world.fast->epoll_fd = epoll_create1(0);
    world.fast->device_fd = ends[0];
    world.fast->l2 = how & 1;
    world.fast->burst_minimum = how & 2 ? 16 : 1;
    watch(world.fast, ends[0], how & 4 ? EPOLLIN : EPOLLIN | EPOLLOUT);
    world.guest = ends[1];
    world.is_over = 0;
    world.sent = world.at = 0;
    world.too_long = world.too_short = world.start = world.end = 0;
    faults.allocation = how >> 4 & 3;
    world.stream = ts_stream_open(world.fast, ends[0], prefix, how & 8, PICK(&input, mosts));
    CHECK(!world.stream || prefix <= 4);
    CHECK(world.stream || prefix > 4 || !faults.allocation);
    faults.allocation = 0;
    if (world.stream) {
        CHECK(!ts_stream_open(world.fast, ends[0], 4, 0, 1514));
        while (input.left && operations-- && !world.is_over)
            operate(&input);
        if (!world.is_over)
            settle();
    }
    close(world.fast->epoll_fd);
    close(ends[0]);
    if (world.guest >= 0)
        close(world.guest);
    ts_fast_free(world.fast);
    return 0;
}
