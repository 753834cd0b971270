/*
 * A shaped link under a program: the input is read as words of a shaping, packets of either side, time, and calls
 * that fail. The packets are arbitrary; what is checked is the account: of each stage, of the memory, and that
 * whatever leaves leaves in order of time, when it is due, and with the bytes that it came with, but for marks.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "device.h"
#include "fast_shape.h"
#include "faults.h"

#include <errno.h>
#include <math.h>

#define MOST_OPERATIONS 300
#define LARGEST (LARGEST_HEADERS + 65536)

static const uint32_t sizes[] = {0, 1, 100, 1448, 1460, 2896, 9000, 40000, 65000, 33};
static const uint32_t gso_sizes[] = {1448, 100, 31, 1460, 9000, 0, 65535, 1};
static const uint32_t types[] = {0, 0, 1, 4, 5, 0x81, 3, 0x80};
static const double waits[] = {0, 1e-6, 0.0004, 0.001, 0.01, 0.1, 1, 100};
static const double rates[] = {8e-9, 8e-8, 8e-7, 8e-6, 8e-4, 0};
static const double delays[] = {0, 0.001, 0.01, 0.3, 10};
static const double losses[] = {0, 0.01, 0.5, 1};
static const uint64_t bounds[] = {0, 1, 5, 64, 1000, UINT64_MAX};
static const uint64_t memories[] = {0, 2000, 20000, 1 << 20, 64 << 20};
static const int errors[] = {EAGAIN, EINTR, EIO, EBADFD, EINVAL, EPIPE, ENOBUFS};

struct world {
    struct ts_fast *fast;
    struct ts_shape *shape;
    struct ts_pipeline *pipelines[2]; /* up, down */
    int guest, is_over;
};

static struct world world;
static uint8_t packet[TS_FAST_VNET + LARGEST], scratch[TS_FAST_FRAME];

static void seed(struct input *input, struct ts_random *random)
{
    uint32_t word = take8(input), i;

    for (i = 0; i < TS_RANDOM_WORDS; i++)
        random->words[i] = word = word * 1664525 + 1013904223;
    random->index = take8(input) * 4 % (TS_RANDOM_WORDS + 1);
}

/* As the stages fill it in. */
static struct ts_pipeline *make_pipeline(struct input *input, int l2)
{
    struct ts_pipeline *pipeline = ts_pipeline_new();
    uint32_t how = take8(input);

    if (!pipeline)
        return NULL;
    pipeline->l2 = (uint8_t)l2;
    pipeline->has_loss = how & 1;
    pipeline->has_rate = how >> 1 & 1;
    pipeline->has_delay = how >> 2 & 1;
    pipeline->keep_order = how >> 3 & 1;
    pipeline->ecn = how >> 4 & 1;
    pipeline->loss = PICK(input, losses);
    pipeline->seconds_per_byte = PICK(input, rates);
    pipeline->burst = how & 32 ? PICK(input, delays) : 0;
    pipeline->free = -HUGE_VAL;
    pipeline->overhead = (int64_t)take8(input) - 128;
    pipeline->cell = how & 64 ? 48 : 0;
    pipeline->cell_overhead = 5;
    pipeline->queue_packets = PICK(input, bounds);
    pipeline->queue_bytes = PICK(input, bounds) * 100;
    pipeline->target = PICK(input, delays);
    pipeline->interval = PICK(input, delays) + 1e-6;
    pipeline->hash_seed = take16(input);
    pipeline->by_guest = pipeline->hash_seed & 1;
    pipeline->delay = PICK(input, delays);
    pipeline->jitter = how & 128 ? PICK(input, delays) : 0;
    pipeline->latest = -HUGE_VAL;
    pipeline->memory_limit = PICK(input, memories);
    pipeline->memory_overhead = 384;
    seed(input, &pipeline->loss_random);
    seed(input, &pipeline->delay_random);
    if (ts_pipeline_set_queue(pipeline, take8(input) % 3)) {
        ts_pipeline_free(pipeline);
        return NULL;
    }
    return pipeline;
}

static void check_line(const struct ts_line *line, uint64_t *count, uint64_t *bytes)
{
    const struct ts_packet *one, *last = NULL;
    uint64_t packets = 0, size = 0;

    for (one = line->first; one; one = one->next) {
        packets++;
        size += one->length;
        last = one;
    }
    CHECK(packets == line->count && size == line->bytes && last == line->last);
    *count += packets;
    *bytes += size;
}

static void check_turns(const struct ts_pipeline *pipeline)
{
    uint32_t turn, seen = 0, expected = 0, i;
    int32_t number;

    for (turn = 0; turn < TS_TURNS; turn++)
        for (number = pipeline->first_turn[turn]; number != TS_NO_BUCKET; number = pipeline->buckets[number].next) {
            CHECK(pipeline->buckets[number].turn == turn && ++seen <= TS_BUCKETS);
            CHECK(pipeline->buckets[number].next != TS_NO_BUCKET || pipeline->last_turn[turn] == number);
        }
    for (i = 0; i < pipeline->made_count; i++) {
        const struct ts_bucket *bucket = &pipeline->buckets[pipeline->made[i]];

        expected += bucket->turn != TS_NO_TURN;
        CHECK(bucket->turn != TS_NO_TURN || !bucket->line.count);
    }
    CHECK(seen == expected);
}

static uint64_t dropped_by(const struct ts_stage *stage)
{
    uint64_t sum = 0;
    int reason;

    for (reason = 0; reason < TS_SHAPE_DROPS; reason++)
        sum += stage->dropped[reason];
    return sum;
}

static void check_pipeline(const struct ts_pipeline *pipeline)
{
    uint64_t waiting = 0, bytes = 0, held = 0, dropped = 0, sent, unused = 0;
    uint32_t i, inside[TS_STAGES];

    if (pipeline->discipline == TS_FQ_CODEL) {
        for (i = 0; i < pipeline->made_count; i++)
            check_line(&pipeline->buckets[pipeline->made[i]].line, &waiting, &bytes);
        CHECK(waiting == pipeline->queue.count && bytes == pipeline->queue.bytes);
        check_turns(pipeline);
    } else {
        check_line(&pipeline->queue, &waiting, &bytes);
    }
    CHECK(waiting <= pipeline->queue_packets && bytes <= pipeline->queue_bytes);
    check_line(&pipeline->passed, &unused, &unused);
    for (i = 0; i < pipeline->held_count; i++) {
        held += pipeline->held[i]->length;
        CHECK(!i || pipeline->held[(i - 1) / 2]->due <= pipeline->held[i]->due);
    }
    CHECK(held == pipeline->held_bytes);
    inside[TS_STAGE_LOSS] = 0;
    inside[TS_STAGE_RATE] = (uint32_t)waiting + (pipeline->sending != NULL);
    inside[TS_STAGE_DELAY] = pipeline->held_count;
    if (pipeline->sending)
        bytes += pipeline->sending->length;
    CHECK(pipeline->memory_used == bytes + held + (inside[TS_STAGE_RATE] + inside[TS_STAGE_DELAY]) * 384);
    CHECK(pipeline->memory_used <= pipeline->memory_limit);
    for (i = 0; i < TS_STAGES; i++) {
        const struct ts_stage *stage = &pipeline->stages[i];

        dropped += dropped_by(stage);
        sent = stage->received - dropped_by(stage) - inside[i];
        CHECK(stage->sent == sent);
    }
    CHECK(dropped == pipeline->dropped);
}

static uint32_t make_packet(struct input *input)
{
    uint32_t how = take8(input), size = PICK(input, sizes), length, header;
    struct shape shape = {.l2 = world.fast->l2, .family = how & 1 ? 6 : 4, .udp = how >> 1 & 1, .ttl = 64, .flags = 16};
    uint16_t gso_size = (uint16_t)PICK(input, gso_sizes), start, offset;

    shape.size = size;
    shape.id = how >> 2 & 3;
    shape.mark = how >> 4 & 3;
    header = (uint32_t)put_headers(packet + TS_FAST_VNET, &shape);
    fill_content(packet + TS_FAST_VNET + header, size, size);
    put_checksums(packet + TS_FAST_VNET, header + size, &shape);
    length = header + size;
    memset(packet, 0, TS_FAST_VNET);
    start = (uint16_t)(header - (shape.udp ? 8 : 32));
    offset = shape.udp ? 6 : 16;
    packet[0] = how >> 6 & 1;
    packet[1] = (uint8_t)PICK(input, types);
    memcpy(packet + 4, &gso_size, 2);
    memcpy(packet + 6, &start, 2);
    memcpy(packet + 8, &offset, 2);
    if (how & 128) {
        patch(input, packet, TS_FAST_VNET + header);
        length = take16(input) % (length + 1);
    }
    return TS_FAST_VNET + length;
}

static void guest_sends(struct input *input)
{
    uint32_t count = 1 + take8(input) % 16, length = make_packet(input);

    while (count--)
        if (send(world.guest, packet, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            break;
}

static void stack_sends(struct input *input)
{
    uint32_t count = 1 + take8(input) % 16, length = make_packet(input), first;
    struct iovec views[2];

    first = length < TS_FAST_VNET + 40 ? length : TS_FAST_VNET + 40;
    views[0] = (struct iovec){packet, first};
    views[1] = (struct iovec){packet + first, length - first};
    while (count--)
        if (count & 1)
            ts_shape_put(world.shape, packet, length, world.fast->now);
        else
            ts_fast_transmit(world.fast, views, 2);
}

static void guest_receives(uint32_t count)
{
    static const uint8_t nothing[TS_FAST_VNET];
    ssize_t got;

    while (count-- && (got = recv(world.guest, scratch, sizeof scratch, MSG_DONTWAIT)) > 0)
        CHECK(got > TS_FAST_VNET && !memcmp(scratch, nothing, TS_FAST_VNET));
}

static void run(uint32_t rounds)
{
    struct ts_fast *fast = world.fast;
    int status = ts_fast_run(fast, 0, faults.now + 1e9, rounds);
    const uint8_t *data;
    uint32_t at = 0, length, i;

    CHECK(status >= 0 && fast->frame_count <= TS_FAST_FRAMES);
    for (i = 0; i < fast->frame_count; i++)
        CHECK(fast->frames[i].length > TS_FAST_VNET && !fast->frames[i].data[0] && !fast->frames[i].data[1]);
    ts_fast_flush(fast);
    while ((data = next_refused(fast, &at, &length)))
        CHECK(length > TS_FAST_VNET);
    CHECK(!status || status == TS_FAST_BUSY || fast->frame_count || fast->refused_count || fast->device_errno ||
          fast->ready_count);
    CHECK(world.pipelines[0]->passed.count <= TS_SHAPE_READ * 2100 && !world.pipelines[1]->passed.count);
    if (!status)
        CHECK(ts_fast_deadline(fast) > fast->now);
    world.is_over |= fast->device_errno != 0;
    fast->refused_count = 0;
}

/* What is inside goes to Python and comes back. */
static void change_hands(struct ts_pipeline *pipeline)
{
    struct ts_packet *one;
    struct ts_line lines[TS_PLACES];
    double last[TS_PLACES];
    int place;

    faults.allocation = 0;
    memset(lines, 0, sizeof lines);
    for (place = 0; place < TS_PLACES; place++) {
        last[place] = -HUGE_VAL;
        while ((one = ts_pipeline_take(pipeline, place))) {
            CHECK(place != TS_AT_DELAY || one->due >= last[place]);
            last[place] = one->due;
            ts_line_append(&lines[place], one);
        }
    }
    CHECK(!pipeline->sending && !pipeline->queue.count && !pipeline->held_count && !pipeline->passed.count);
    CHECK(!pipeline->queue.bytes && !pipeline->held_bytes && !pipeline->passed.bytes);
    for (place = 0; place < TS_PLACES; place++)
        while ((one = ts_line_take(&lines[place]))) {
            CHECK(!ts_pipeline_put(pipeline, place, one->data + TS_PIPELINE_GAP, one->length, one->since, one->due));
            ts_packet_free(one);
        }
}

static void operate(struct input *input)
{
    uint32_t value;

    switch (take8(input) % 10) {
    case 0: case 1: guest_sends(input); break;
    case 2: case 3: stack_sends(input); break;
    case 4: guest_receives(take8(input)); break;
    case 5: case 6:
        faults.now += PICK(input, waits);
        run(1 + take8(input) % 8);
        break;
    case 7:
        change_hands(world.pipelines[take8(input) & 1]);
        break;
    case 8:
        value = take8(input);
        faults.allocation = value & 7;
        faults.write = value & 8 ? PICK(input, errors) : 0;
        faults.read = 0;
        break;
    default:
        world.fast->hold = take8(input) & 1;
    }
    check_pipeline(world.pipelines[0]);
    check_pipeline(world.pipelines[1]);
}

/* In order of time, and none before it is due. */
static void drain(struct ts_pipeline *pipeline)
{
    double deadline, last = -HUGE_VAL;
    struct ts_packet *one;

    while ((deadline = ts_pipeline_deadline(pipeline)) != HUGE_VAL) {
        double now = deadline > pipeline->told ? deadline : pipeline->told;

        while ((one = ts_pipeline_pop(pipeline, now))) {
            CHECK(one->due >= last && one->due <= now);
            last = one->due;
            ts_packet_free(one);
        }
    }
    check_pipeline(pipeline);
    CHECK(!pipeline->memory_used);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint32_t how = take8(&input), operations = MOST_OPERATIONS;
    int room = 1 << (12 + take8(&input) % 8);

    memset(&faults, 0, sizeof faults);
    faults.now = 1000;
    world.is_over = 0;
    world.fast = ts_fast_new(1);
    CHECK(world.fast);
    world.guest = open_device(world.fast, how & 1, room);
    world.fast->burst_minimum = how & 2 ? 16 : 1;
    faults.allocation = how >> 2 & 7;
    world.pipelines[0] = make_pipeline(&input, how & 1);
    world.pipelines[1] = make_pipeline(&input, how & 1);
    if (world.pipelines[0] && world.pipelines[1])
        world.shape = ts_shape_open(world.fast, world.pipelines[0], world.pipelines[1]);
    else
        world.shape = NULL;
    faults.allocation = 0;
    if (world.shape) {
        while (input.left && operations-- && !world.is_over)
            operate(&input);
        memset(&faults, 0, sizeof faults);
        ts_shape_close(world.fast);
        drain(world.pipelines[0]);
        drain(world.pipelines[1]);
    }
    close_device(world.fast, world.guest);
    ts_pipeline_free(world.pipelines[0]);
    ts_pipeline_free(world.pipelines[1]);
    return 0;
}
